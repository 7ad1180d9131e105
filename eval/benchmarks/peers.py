"""The same work through starec, verifiers and inspect_ai: calls a second of CPU, each in its own environment.

    python eval/benchmarks/peers.py [--users 512] [--concurrency 256] [--rounds 3] [--envs .venv-peers]

The work: each user ranks and reflects, turn after turn, and the memory is rewritten in between; a server in another
process (eval/benchmarks/canned.py) answers each call after 200 ms. Prompts, answers' parsers, turns and feedback are
starec's own functions in all three, so what differs is the loop, the client, the limit of calls in flight and what is
written down. For the peers that is what their users write: an environment of verifiers' that gives its own prompts
(MultiTurnEnv; from 0.4.0 on verifiers runs each rollout as a program in a process of its own, which would be another
kind of work), and a solver of inspect_ai's. Each keeps its record as it does by default.

Shown are medians over rounds in which the three take turns: CPU time of the process from the loaded data to the written
record, wall time, and how many times the peer's CPU time a call ours is.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = {"starec": "starec", "verifiers": "verifiers==0.3.1", "inspect_ai": "inspect_ai==0.3.285"}
FORMAT = "labels"
Work = tuple[Any, list[int], int, str, Path]
"""The data set, 0-based users, turns, the server's URL and a folder for the record."""


def through_starec(work: Work, concurrency: int) -> int:
    """Run a population; returns how many calls were answered."""
    from starec_agents import OpenAIChat, UserAgent, run_population
    from starec_agents.llm.base import Endpoint

    dataset, users, turns, url, out = work
    llm = OpenAIChat(Endpoint(base_url=url, model="fake", concurrency=concurrency))
    agent = UserAgent.factory(llm, answer_format=FORMAT)
    ids = [dataset.user(user).id for user in users]
    run = run_population(
        dataset, agent, users=ids, turns=turns, out=out / "run", concurrency=concurrency, progress=False
    )
    assert run.metrics["valid_share"] == 1 and run.metrics["failures"] == 0
    return 2 * int(run.metrics["steps"])


class Walk:
    """One user's turns, by starec's functions: the next prompt for the last answer."""

    def __init__(self, turns: list[Any]) -> None:
        from starec_agents.tasks import start_memory

        self.turns, self.rewards = iter(turns), list[float]()
        self.turn = next(self.turns)
        self.memory, self.feedback = start_memory(self.turn.query), None

    def first(self) -> list[dict[str, str]]:
        """The prompt to begin with."""
        from starec_agents.tasks import rank_messages

        return rank_messages(self.turn.query, self.memory, FORMAT)

    def after(self, answer: str) -> list[dict[str, str]] | None:
        """The prompt that follows an answer; None at the end."""
        from starec_agents.tasks import event_line, parse_profile, parse_ranking, reflect_messages
        from starec_env.replay.stream import judge

        query = self.turn.query
        if self.feedback is None:
            ranking = parse_ranking(answer, query.candidates, FORMAT)
            assert ranking.valid
            self.feedback, reward = judge(self.turn, ranking)
            self.rewards.append(reward)
            return reflect_messages(query, self.memory, ranking, self.feedback, FORMAT)
        profile = parse_profile(answer)
        assert profile
        self.memory = self.memory.updated(profile=profile, event=event_line(query, self.feedback))
        self.feedback, self.turn = None, next(self.turns, None)
        return self.first() if self.turn else None


def through_verifiers(work: Work, concurrency: int) -> int:
    """Evaluate an environment; returns how many calls were answered."""
    import verifiers as vf
    from datasets import Dataset

    from starec_env.replay.stream import Stream

    dataset, users, turns, url, out = work
    stream = Stream(dataset, turns=turns)

    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage}

    class Users(vf.MultiTurnEnv):  # type: ignore[misc]
        async def setup_state(self, state: Any) -> Any:
            state["walk"] = Walk(stream.turns(state["info"]["user"]))
            return state

        async def get_prompt_messages(self, state: Any) -> Any:
            done = state["trajectory"]
            messages = state["walk"].after(done[-1]["completion"][-1].content) if done else state["walk"].first()
            if messages is None:
                state["final_env_response"] = []
            return [kinds[one["role"]](content=one["content"]) for one in messages or ()]

        async def env_response(self, messages: Any, state: Any, **options: Any) -> Any:
            return []

        async def render_completion(self, state: Any) -> None:
            state["completion"] = state["trajectory"][-1]["completion"]

    def reward(state: Any, **options: Any) -> float:
        return sum(state["walk"].rewards) / turns

    rows = [{"prompt": [{"role": "user", "content": ""}], "answer": "", "info": {"user": user}} for user in users]
    env = Users(eval_dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[reward]))
    client = vf.ClientConfig(api_key_var="NO_KEY", api_base_url=url)
    options = {"max_concurrent": concurrency, "results_path": out / "verifiers", "save_results": True}
    sampling = {"temperature": 0.0, "max_tokens": 2048}
    found = env.evaluate_sync(client, "fake", sampling_args=sampling, state_columns=["trajectory"], **options)
    states = found["outputs"]
    assert len(states) == len(users) and not any(state.get("error") for state in states)
    return sum(len(state["trajectory"]) for state in states)


def through_inspect_ai(work: Work, concurrency: int) -> int:
    """Evaluate a task; returns how many calls were answered."""
    from inspect_ai import Task
    from inspect_ai import eval as run_eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, get_model
    from inspect_ai.scorer import Score, mean, scorer, stderr
    from inspect_ai.solver import solver

    from starec_env.replay.stream import Stream

    dataset, users, turns, url, out = work
    stream = Stream(dataset, turns=turns)
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser}
    calls = 0

    @solver
    def user_solver() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            nonlocal calls
            walk = Walk(stream.turns(state.metadata["user"]))
            messages = walk.first()
            while messages:
                answer = await get_model().generate([kinds[one["role"]](content=one["content"]) for one in messages])
                calls += 1
                messages = walk.after(answer.completion) or []
            state.metadata["rewards"], state.output = walk.rewards, answer
            return state

        return solve

    @scorer(metrics=[mean(), stderr()])
    def reward() -> Any:
        async def score(state: Any, target: Any) -> Any:
            return Score(value=sum(state.metadata["rewards"]) / turns)

        return score

    samples = [Sample(input=f"user {user}", metadata={"user": user}) for user in users]
    task = Task(dataset=samples, solver=user_solver(), scorer=reward())
    os.environ |= {"FAKE_BASE_URL": url, "FAKE_API_KEY": "none"}
    (log,) = run_eval(
        task, model="openai-api/fake/fake", log_dir=str(out / "inspect"), display="none", max_connections=concurrency,
        max_samples=concurrency, temperature=0.0, max_tokens=2048,
    )  # fmt: skip
    assert log.status == "success", log.error
    return calls


THROUGH: dict[str, Callable[[Work, int], int]] = {
    "starec": through_starec,
    "verifiers": through_verifiers,
    "inspect_ai": through_inspect_ai,
}


def child(name: str, url: str, n: int, turns: int, concurrency: int) -> None:
    """Do the work in this process and print its figures."""
    import numpy as np

    from starec_env import load_dataset, prepare
    from starec_env.replay.stream import Stream

    dataset = prepare(load_dataset("ml-latest-small"))
    stream = Stream(dataset, turns=turns)
    users = [int(user) for user in np.flatnonzero(stream.end - stream.begin == turns)[:n]]
    assert len(users) == n, f"only {len(users)} users have {turns} turns"
    __import__(name if name != "starec" else "starec_agents")
    with tempfile.TemporaryDirectory() as out:
        wall, cpu = time.perf_counter(), cpu_time()
        calls = THROUGH[name]((dataset, users, turns, url, Path(out)), concurrency)
        wall, cpu = time.perf_counter() - wall, cpu_time() - cpu
        kib = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file()) / 1024
    assert calls == n * turns * 2, calls
    figures = {
        "cpu_ms": 1e3 * cpu / calls,
        "wall_s": wall,
        "calls_s": calls / wall,
        "kib": kib,
        "version": version(name),
    }
    print(json.dumps(figures), flush=True)


def cpu_time() -> float:
    """Seconds of CPU of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def environment(folder: Path, name: str) -> Path:
    """The interpreter of an environment that has starec and the package, made if it isn't there."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
        packages = [] if name == "starec" else [PACKAGES[name], "openai"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", ROOT, *packages], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--envs", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child, args.users, args.turns, args.concurrency)
    from canned import spawn

    pythons = {name: environment(args.envs, name) for name in PACKAGES}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in PACKAGES}
    options = [f"--{name}={getattr(args, name)}" for name in ("users", "turns", "concurrency")]
    with spawn(args.latency) as url:
        for _ in range(args.rounds):
            for name, python in pythons.items():
                command = [python, __file__, *options, "--child", name, url]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
    ours = rounds["starec"]
    for name, found in rounds.items():
        figures = {key: statistics.median(one[key] for one in found) for key in ("cpu_ms", "wall_s", "calls_s", "kib")}
        times = statistics.median(one["cpu_ms"] / own["cpu_ms"] for one, own in zip(found, ours, strict=True))
        print(
            f"{name} {found[0]['version']}: "
            f"{figures['cpu_ms']:.2f} ms of CPU a call ({times:.1f} times ours), "
            f"{figures['wall_s']:.1f} s, {figures['calls_s']:.0f} calls/s, "
            f"{1e3 / figures['cpu_ms']:.0f} calls a second "
            f"of CPU, {figures['kib'] / 1024:.1f} MiB written",
            flush=True,
        )


if __name__ == "__main__":
    main()

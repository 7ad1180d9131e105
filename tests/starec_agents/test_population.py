"""Populations: complete, reproducible, resumable, and steady through failures."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import make_dataset, record

from starec_agents.agent import UserAgent
from starec_agents.commands import simulate as simulate_command
from starec_agents.llm import Completion, Message, ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.population import Run, arun_population, run_population
from starec_agents.runs.reading import read_failures, read_run, read_steps, read_trajectories
from starec_agents.runs.store import RunStore
from starec_env.errors import EndpointError, InvalidOption, RunError, StarecWarning
from starec_env.metrics import METRICS, ndcg
from starec_env.types import Dataset

ROOT = Path(__file__).parents[2]


def agents(**options: Any) -> Callable[[], UserAgent]:
    return UserAgent.factory(ScriptedChat(scripted_user()), **options)


def simulate(dataset: Dataset, out: Path, **options: Any) -> Run:
    return run_population(dataset, agents(), **{"out": out, "turns": 3, "progress": False, **options})


def test_a_run_writes_all_its_files_and_its_metrics(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = simulate(tiny_dataset, tmp_path / "run")
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert metrics == run.metrics
    assert {f"{name}{se}" for name in METRICS for se in ("", "_se")} <= set(metrics)
    assert metrics["users"] == 12 and metrics["failures"] == 0 and metrics["valid_share"] == 1.0
    assert 0 < metrics["ndcg@20"] < 1 and metrics["prompt_tokens"] > 0 and metrics["wall_s"] > 0
    steps = list(read_steps(run.out))
    assert metrics["steps"] == len(steps) == sum(len(t.steps) for t in read_trajectories(run.out))
    candidates = pq.read_table(run.out / "candidates.parquet").to_pylist()
    assert [(row["user_id"], row["turn"]) for row in candidates] == [(step.user_id, step.turn) for step in steps]
    assert [tuple(row["candidates"]) for row in candidates] == [step.candidates for step in steps]
    described = read_run(run.out)
    assert described["dataset"]["hash"] == tiny_dataset.hash and described["candidates_hash"]
    assert "NDCG@10" in str(run) and str(run.out) in str(run)


def test_disliked_targets_are_not_scored_in_a_runs_metrics(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = simulate(tiny_dataset, tmp_path / "run", targets="all", turns=2)
    scored: dict[Any, list[float]] = {}
    disliked = 0
    for step in read_steps(run.out):
        if step.feedback.liked:
            scored.setdefault(step.user_id, []).append(float(ndcg(step.feedback.rank, 10)))
        disliked += not step.feedback.liked
    assert disliked and len(scored) < 12
    assert run.metrics["ndcg@10"] == pytest.approx(fmean(fmean(values) for values in scored.values()))
    assert (run.metrics["users"], run.metrics["scored_users"]) == (12, len(scored))
    assert f"Disliked targets are not scored: {12 - len(scored)} users had no other" in str(run)


def test_a_run_says_whom_it_left_out_and_refuses_such_a_user_when_named(tmp_path: Path) -> None:
    tiny = make_dataset(n_users=6, n_items=40, length=14)
    rows = np.append(tiny.item_indices, np.arange(40)).astype(np.int32)
    dense = replace(
        tiny,
        user_ids=np.arange(1, 8),
        indptr=np.append(tiny.indptr, len(rows)),
        item_indices=rows,
        ratings=np.append(tiny.ratings, np.full(40, 5)).astype(np.float32),
        timestamps=np.append(tiny.timestamps, np.arange(40)),
        demographics=None,
    )
    run = simulate(dense, tmp_path / "run", turns=1)
    assert run.metrics["users"] == 6
    (note,) = read_run(run.out)["notes"]
    assert note.startswith("1 of 7 users are left out") and "1 of 7 users are left out" in str(run)
    with pytest.raises(InvalidOption, match="user 7 leaves only 0 of the 40 items as negatives"):
        simulate(dense, tmp_path / "named", users=[1, 7])


@pytest.mark.parametrize(
    ("answer_format", "remedy"), [("labels", "--answer-format scores;"), ("scores", "take a larger model")]
)
def test_answers_that_cannot_be_read_are_said_with_a_remedy_that_is_not_in_use_already(
    answer_format: str, remedy: str, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    agent = UserAgent.factory(ScriptedChat("I'd rather not."), answer_format=answer_format)
    run = run_population(tiny_dataset, agent, users=3, turns=1, out=tmp_path / "run", progress=False)
    assert run.metrics["valid_share"] == 0 and remedy in " ".join(str(run).split())
    assert remedy not in " ".join(str(simulate(tiny_dataset, tmp_path / "good")).split())


def test_memory_passes_from_step_to_step(tiny_dataset: Dataset, tmp_path: Path) -> None:
    simulate(tiny_dataset, tmp_path / "run")
    for trajectory in read_trajectories(tmp_path / "run"):
        for before, after in zip(trajectory.steps, trajectory.steps[1:], strict=False):
            assert after.memory_before == before.memory
        assert [call.kind for call in trajectory.steps[0].calls] == ["rank", "reflect"]


def test_the_record_is_the_same_at_any_concurrency(tiny_dataset: Dataset, tmp_path: Path) -> None:
    for concurrency in (1, 64):
        simulate(tiny_dataset, tmp_path / str(concurrency), concurrency=concurrency)
    assert record(tmp_path / "1") == record(tmp_path / "64")


def test_users_are_a_sample_by_seed_or_the_ids_given(tiny_dataset: Dataset, tmp_path: Path) -> None:
    simulate(tiny_dataset, tmp_path / "a", users=4)
    simulate(tiny_dataset, tmp_path / "b", users=4)
    simulate(tiny_dataset, tmp_path / "c", users=[7, 3])
    assert record(tmp_path / "a") == record(tmp_path / "b")
    assert [t.user_id for t in read_trajectories(tmp_path / "c")] == [7, 3]
    with pytest.raises(InvalidOption, match="12 users"):
        simulate(tiny_dataset, tmp_path / "d", users=13)


_CHILD = """
import sys
from support import make_dataset
from starec_agents.agent import UserAgent
from starec_agents.llm import ScriptedChat
from starec_agents.runs.population import run_population
from starec_agents.llm.scripted import scripted_user
agent = UserAgent.factory(ScriptedChat(scripted_user(), latency=0.02))
run_population(make_dataset(), agent, out=sys.argv[1], turns=4, concurrency=3, resume=True, progress=False)
"""


def child(out: Path) -> subprocess.Popen[bytes]:
    paths = [str(ROOT / part) for part in ("", "agents", "tests")]
    return subprocess.Popen([sys.executable, "-c", _CHILD, str(out)], env={**os.environ, "PYTHONPATH": ":".join(paths)})


def test_a_run_killed_at_five_random_moments_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    simulate(make_dataset(), tmp_path / "whole", turns=4)
    moments, killed = random.Random(0), 0
    for _ in range(5):
        process = child(tmp_path / "broken")
        lines = _count(tmp_path / "broken")
        while _count(tmp_path / "broken") <= lines and process.poll() is None:
            time.sleep(0.01)  # past the imports, into the run
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    assert child(tmp_path / "broken").wait(60) == 0
    assert record(tmp_path / "broken") == record(tmp_path / "whole")
    assert len(read_run(tmp_path / "broken")["sessions"]) >= killed


def _count(out: Path) -> int:
    path = out / "steps.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("damage", ["torn", "middle", "first"])
def test_a_damaged_record_is_mended_on_resuming(damage: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(tiny_dataset, out)
    whole = record(out)
    lines = (out / "steps.jsonl").read_text().splitlines(keepends=True)
    if damage == "torn":
        lines[-1] = lines[-1][:100]
    else:
        lines[0 if damage == "first" else 1] = "{not json}\n"
    (out / "steps.jsonl").write_text("".join(lines))
    with nullcontext() if damage == "torn" else pytest.warns(StarecWarning, match="could not be read"):
        simulate(tiny_dataset, out, resume=True)
    assert record(out) == whole
    assert (out / "steps.damaged").exists() == (damage != "torn")


def test_resuming_a_complete_run_asks_the_model_nothing(tiny_dataset: Dataset, tmp_path: Path) -> None:
    simulate(tiny_dataset, tmp_path / "run")
    before = record(tmp_path / "run")

    def never(messages: object, sampling: object) -> str:
        raise AssertionError("asked again for what is recorded")

    def agent() -> UserAgent:
        return UserAgent(ScriptedChat(never))

    run_population(tiny_dataset, agent, out=tmp_path / "run", turns=3, resume=True, progress=False)
    assert record(tmp_path / "run") == before


def test_one_users_failure_is_recorded_and_only_that_user_is_done_again(tiny_dataset: Dataset, tmp_path: Path) -> None:
    class Flaky(ScriptedChat):
        broken, asked = True, 0

        async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
            self.asked += 1
            if self.broken and self.asked % 20 == 0:
                raise EndpointError("the endpoint said no", kind="server")
            return await super().complete(messages, **sampling)

    llm = Flaky(scripted_user())

    def run(**options: Any) -> Run:
        agent = UserAgent.factory(llm)
        return run_population(tiny_dataset, agent, out=tmp_path / "run", turns=3, progress=False, **options)

    first = run(concurrency=1)
    failed = read_failures(tmp_path / "run")
    assert 0 < first.metrics["failures"] == len(failed) < 12
    assert {failure.kind for failure in failed} == {"server"}
    llm.broken, llm.asked = False, 0
    second = run(concurrency=1, resume=True)
    assert second.metrics["failures"] == 0 and second.metrics["users"] == 12
    assert llm.asked == 2 * (second.metrics["steps"] - first.metrics["steps"])
    simulate(tiny_dataset, tmp_path / "whole")
    assert record(tmp_path / "run") == record(tmp_path / "whole")


def test_an_agent_that_raises_is_a_recorded_failure(tiny_dataset: Dataset, tmp_path: Path) -> None:
    class Broken(UserAgent):
        async def alearn(self, feedback):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError("my own bug")

    def agent() -> UserAgent:
        return Broken(ScriptedChat(scripted_user()))

    run = run_population(tiny_dataset, agent, out=tmp_path / "run", users=3, turns=1, progress=False)
    assert run.metrics["failures"] == 3 and run.metrics["ndcg@10"] is None
    assert "my own bug" in read_failures(run.out)[0].message


def test_an_endpoint_that_fails_every_user_stops_the_run(tmp_path: Path) -> None:
    class Dead:
        settings = {"model": "dead"}

        async def complete(self, messages: object, **sampling: object) -> Completion:
            raise EndpointError("nobody answers at http://localhost:1", kind="connection")

    with pytest.raises(RunError, match=r"in a row failed.*nobody answers"):
        run_population(make_dataset(40), UserAgent.factory(Dead()), out=tmp_path, concurrency=4, progress=False)
    assert len(read_failures(tmp_path)) == 8


def test_a_folder_in_use_or_with_another_run_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    simulate(tiny_dataset, tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already"):
        simulate(tiny_dataset, tmp_path / "run")
    with pytest.raises(RunError, match=r"seed differ.*was 0, is 1"):
        simulate(tiny_dataset, tmp_path / "run", seed=1, resume=True)
    with pytest.raises(RunError, match="dataset"):
        simulate(make_dataset(seed=5), tmp_path / "run", resume=True)
    store = RunStore(tmp_path / "busy", {"model": "m"})
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        simulate(tiny_dataset, tmp_path / "busy")
    store.close()


def test_a_file_in_the_folders_place_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't write to"):
        simulate(tiny_dataset, tmp_path / "file")


async def test_inside_a_running_loop_the_async_twin_is_named(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="arun_population"):
        simulate(tiny_dataset, tmp_path / "run")
    run = await arun_population(tiny_dataset, agents(), out=tmp_path / "run", turns=1, progress=False)
    assert run.metrics["users"] == 12


def test_agents_learn_from_disliked_interactions_by_default_and_liked_ones_alone_are_scored(tmp_path: Path) -> None:
    agent = UserAgent.factory(ScriptedChat(scripted_user()))
    run = run_population(make_dataset(), agent, out=tmp_path, turns=4, progress=False)
    steps = list(read_steps(tmp_path))
    assert {step.feedback.liked for step in steps} == {True, False} and read_run(tmp_path)["targets"] == "all"
    assert all(step.memory.history[-1].liked == step.feedback.liked for step in steps)
    liked = [step for step in steps if step.feedback.liked]
    assert run.metrics["scored_users"] == len({step.user_id for step in liked})
    (option,) = [option for option in simulate_command.params if option.name == "targets"]
    assert option.default == "all"

"""Several processes: the same result as one, whatever dies."""

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, scripted
from support import make_dataset, record
from worker_parts import Deadly, Facts, Refusing, diary

from starec_agents.agent import UserAgent
from starec_agents.graphs import append_history
from starec_agents.llm import ScriptedChat
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.lines import start_check
from starec_agents.runs.population import Run, run_population
from starec_agents.runs.reading import read_failures, read_run, read_steps
from starec_agents.runs.rollout import News, Share
from starec_agents.runs.store import RunStore
from starec_agents.runs.workers import WorkerDied, run_shares
from starec_env.errors import InvalidOption, RunError


def simulate(out: Path, llm: Any = None, **options: Any) -> Run:
    agent = UserAgent.factory(llm or ScriptedChat(scripted_user()), graph=options.pop("graph", None))
    return run_population(make_dataset(20), agent, **{"out": out, "turns": 3, "progress": False, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole") / "run"
    simulate(out)
    return record(out)


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    (tmp_path / "deaths").mkdir()
    return tmp_path / "deaths"


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray isn't installed: pip install 'starec[ray]'")
    return request.param


@pytest.mark.parametrize("engine", ["local", "ray"], indirect=True)
def test_a_worker_killed_in_mid_run_is_replaced_and_nothing_is_lost_or_doubled(
    engine: str, deaths: Path, whole: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = simulate(tmp_path / "run", Deadly(deaths, 2), workers=3, concurrency=6, engine=engine)
    assert len(list(deaths.iterdir())) == 2 and caplog.text.count("a worker died") == 2
    assert record(run.out) == whole
    assert run.metrics["failures"] == 0
    assert len(list(run.out.glob("steps-*"))) >= 3  # they stay, and are read together


def test_a_memory_class_and_state_of_ones_own_outlive_a_kill(deaths: Path, tmp_path: Path) -> None:
    whole = simulate(tmp_path / "whole", graph=diary).out
    last = max(read_steps(whole), key=lambda step: len(step.memory.history))
    assert isinstance(last.memory, Facts) and len(last.memory.facts) == 3 and last.state["mood"]["turns"] == 3
    assert last.state["diary"].count("Took") == 3 and set(last.state) == {"mood", "diary", "taken"}
    run = simulate(tmp_path / "run", Deadly(deaths, 1), graph=diary, workers=2, concurrency=4)
    assert len(list(deaths.iterdir())) == 1 and record(run.out) == record(whole)


def test_a_run_that_was_killed_goes_on_with_memory_and_state_of_its_own(tmp_path: Path) -> None:
    simulate(tmp_path / "whole", graph=diary)
    assert _killed_at(tmp_path / "run", 25) == -signal.SIGKILL
    simulate(tmp_path / "run", graph=diary, resume=True)
    assert record(tmp_path / "run") == record(tmp_path / "whole")


def test_a_memory_of_a_class_that_is_not_imported_is_read_whole_and_not_gone_on_with(tmp_path: Path) -> None:
    assert _killed_at(tmp_path, 25) == -signal.SIGKILL
    for path in tmp_path.glob("steps*"):
        path.write_bytes(_sealed(tmp_path, path.read_bytes().replace(b"worker_parts:Facts", b"other_parts_:Facts")))
    assert all(step.memory.facts for step in read_steps(tmp_path))  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="a class that isn't imported here: import its module before resuming"):
        simulate(tmp_path, graph=diary, resume=True)


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/starec_agents"]
from test_workers import diary, simulate

steps = []


def count(step):
    steps.append(step)
    if len(steps) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)


simulate(Path(sys.argv[2]), graph=diary, on_step=count, concurrency=7)
"""


def _killed_at(out: Path, step: int) -> int:
    """Run in another process that kills itself after so many steps; returns its exit status."""
    tests = Path(__file__).parents[1]
    return subprocess.run([sys.executable, "-c", _KILLED, str(tests), str(out), str(step)]).returncode


def _sealed(out: Path, lines: bytes) -> bytes:
    """The lines with the checks that belong to them."""
    checks: dict[bytes, int] = {}
    start, sealed = start_check(read_run(out)["settings_hash"]), b""
    for line in lines.splitlines():
        user, body = line.split(b",", 1)[0], line.rsplit(b',"check"', 1)[0]
        checks[user] = zlib.crc32(body, checks.get(user, start))
        sealed += b'%b,"check":"%08x"}\n' % (body, checks[user])
    return sealed


def test_workers_share_an_endpoint_and_a_graph_is_made_in_each(tmp_path: Path) -> None:
    with FakeEndpoint(scripted()) as server:
        llm = OpenAIChat(Endpoint(base_url=server.url, model="fake"))
        simulate(tmp_path / "two", llm, graph=append_history, workers=2)
        steps = list(read_steps(tmp_path / "two"))
        assert server.requests == len(steps)
    assert read_run(tmp_path / "two")["graph"] == "append-history"
    simulate(tmp_path / "one", graph=append_history)
    assert [step.ranking for step in read_steps(tmp_path / "one")] == [step.ranking for step in steps]


async def test_workers_that_die_again_and_again_end_the_run(tmp_path: Path) -> None:
    began = []

    async def dies(share: Share, tell: Callable[[News], object]) -> None:
        began.append(share.path)
        raise WorkerDied("exit code -9")

    store = RunStore(tmp_path, {})
    with pytest.raises(RunError, match="died 3 times"):
        await run_shares(dies, 1, make_dataset(), [0, 1, 2], {}, store, lambda news: None)
    assert [path.name for path in began] == ["steps-00000.jsonl", "steps-00001.jsonl", "steps-00002.jsonl"]
    store.close()


def test_a_dead_endpoint_ends_the_run_and_the_failures_are_kept(whole: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nobody is here"):
        simulate(tmp_path / "run", Refusing(""), workers=2, concurrency=2)
    assert len(read_failures(tmp_path / "run")) >= 8
    assert read_failures(tmp_path / "run")[0].kind == "connection"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers=0"),
        ({"engine": "rey"}, "did you mean 'ray'"),
        ({"workers": 2, "on_step": print}, "on_step"),
        ({"workers": 2, "llm": ScriptedChat(lambda messages, sampling: "")}, "top of a module"),
        ({"workers": 2, "graph": append_history()}, "graph=append_history"),
    ],
)
def test_what_workers_cannot_do_is_said_before_they_start(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=said):
        simulate(tmp_path / "run", **options)


_CHILD = """
import sys
from support import make_dataset
from starec_agents import ScriptedChat, UserAgent, run_population, scripted_user
if __name__ == "__main__":
    agent = UserAgent.factory(ScriptedChat(scripted_user(), latency=0.1))
    run_population(make_dataset(20), agent, out=sys.argv[1], turns=3, concurrency=4, workers=2, progress=False)
"""


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_process_and_goes_on(how: signal.Signals, whole: str, tmp_path: Path) -> None:
    out, script = tmp_path / "run", tmp_path / "run.py"
    script.write_text(_CHILD)
    process = subprocess.Popen([sys.executable, script, out], env=_environment(), stderr=subprocess.DEVNULL)
    _until(lambda: sum(path.stat().st_size > 0 for path in out.glob("steps-*")) == 2)
    children = _children(process.pid)
    process.send_signal(how)
    assert process.wait(30) != 0
    _until(lambda: not any(map(_alive, children)))
    assert len(children) >= 2
    done = len(list(read_steps(out)))
    assert 0 < done < whole.count("\n")
    llm = ScriptedChat(scripted_user())
    simulate(out, llm, resume=True)
    assert record(out) == whole
    assert llm.requests == 2 * (whole.count("\n") - done)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

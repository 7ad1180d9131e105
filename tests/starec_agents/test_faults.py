"""Populations through an endpoint's faults, and through those of disks and records."""

import asyncio
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from fake_endpoint import FakeEndpoint, scripted
from support import make_dataset

from starec_agents.agent import UserAgent
from starec_agents.llm import OpenAIChat, ScriptedChat, scripted_user, session
from starec_agents.llm.base import Endpoint
from starec_agents.runs.population import Run, run_population
from starec_agents.runs.reading import read_failures, read_steps
from starec_env.errors import RunError

USERS = 40
MIXES = {
    "refusals": {"429": 0.05, "429-after": 0.05, "429-date": 0.05, "503": 0.05},
    "cuts": {"cut": 0.1, "cut-body": 0.1, "500": 0.1},
    "garbage": {name: 0.03 for name in ("half-json", "502-html", "html", "empty", "null", "nothing", "wrong-type")},
    "poison": {"400": 0.05, "half-json": 0.3},
    "slow": {"slow": 0.02},
}
"""Faults after which the answer is the same, so the record must be that of a run without faults."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(session, "MAX_WAIT_S", 0.1)


def simulate(out: Path, llm: Any = None, **options: Any) -> Run:
    agent = UserAgent.factory(llm or ScriptedChat(scripted_user()), answer_format="compact")
    return run_population(make_dataset(USERS), agent, **{"out": out, "turns": 2, "progress": False, **options})


def record(out: Path) -> str:
    return re.sub(r'"usage":{[^}]*}|"finish_reason":[^,]*', "", support.record(out))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole") / "run"
    simulate(out)
    return record(out)


@pytest.mark.parametrize("mix", MIXES)
def test_under_faults_every_user_ends_and_resuming_redoes_the_failed_alone(
    mix: str, whole: str, tmp_path: Path
) -> None:
    with FakeEndpoint(scripted(), faults=MIXES[mix], seed=3, retry_after=0.05) as server:
        endpoint = Endpoint(base_url=server.url, model="fake", timeout_s=2 if mix == "slow" else 60, concurrency=16)
        llm = OpenAIChat(endpoint)
        first = simulate(tmp_path / "run", llm, concurrency=16)
        assert sum(server.faulted[name] for name in MIXES[mix]) >= 2
        assert server.peak <= 16 and server.requests == llm.requests
        done = Counter(step.user_id for step in read_steps(tmp_path / "run"))
        failed = {failure.user_id for failure in read_failures(tmp_path / "run")}
        assert len(failed) == first.metrics["failures"] and (mix == "poison") <= bool(failed)
        wanted = Counter(int(user) for user in re.findall(r'^{"user_id":(\d+)', whole, flags=re.M))
        assert all(done[user] == wanted[user] or user in failed for user in wanted)
        recorded = _prompts(tmp_path / "run")
        server.faults = {}
        server.bodies.clear()
        simulate(tmp_path / "run", llm, concurrency=16, resume=True)
        assert not recorded & {str(body["messages"]) for body in server.bodies}
        assert len(server.bodies) <= 4 * len(failed)
    assert record(tmp_path / "run") == whole


def _prompts(out: Path) -> set[str]:
    return {str([dict(message) for message in call.messages]) for step in read_steps(out) for call in step.calls}


async def test_the_limit_settles_under_a_server_that_bears_ten_and_recovers_with_it() -> None:
    with FakeEndpoint(latency=0.01, capacity=10) as server:
        async with OpenAIChat(Endpoint(base_url=server.url, model="fake", max_retries=50)) as llm:

            async def ask(n: int) -> int:
                before, numbers = llm.retries, iter(range(n))

                async def worker() -> None:
                    for number in numbers:
                        await llm.complete([{"role": "user", "content": str(number)}])

                await asyncio.gather(*(worker() for _ in range(64)))
                return llm.retries - before

            await ask(300)
            assert await ask(600) < 300  # a fixed 64 in flight would be refused several times for each answer
            server.capacity, server.peak = None, 0
            await ask(1500)
            assert server.peak > 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_with_the_reason_and_room_lets_it_go_on(small_disk: Path, whole: str) -> None:
    with pytest.raises(RunError, match=r"can't write to .*No space left.*--resume"):
        simulate(small_disk / "run")
    kept = sum(line.endswith("\n") for line in (small_disk / "run" / "steps.jsonl").open())
    assert kept > 5
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    llm = ScriptedChat(scripted_user())
    simulate(small_disk / "run", llm, resume=True)
    assert record(small_disk / "run") == whole
    assert llm.requests <= 2 * (whole.count("\n") - kept) + 2 * 64  # those in flight when the disk filled


_LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = [str(Path(sys.argv[2]) / "tests"), str(Path(sys.argv[2]) / "tests" / "starec_agents")]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from test_faults import simulate
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
simulate(Path(sys.argv[1]))
"""


def test_a_file_that_may_not_grow_ends_the_run_with_the_reason(whole: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _LIMITED, tmp_path / "run", root]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "RunError: can't write to" in done.stderr and "File too large" in done.stderr
    simulate(tmp_path / "run", resume=True)
    assert record(tmp_path / "run") == whole


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    llm = ScriptedChat(scripted_user())
    with pytest.raises(RunError, match="can't write to /proc/.*choose another folder"):
        simulate(Path("/proc/starec"), llm)
    if os.getuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(RunError, match="Permission denied"):
            simulate(tmp_path / "locked", llm)
    assert llm.requests == 0


def test_a_record_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path / "run")
    monkeypatch.setattr("starec_agents.runs.population.version", lambda name: "9.9")
    with pytest.raises(RunError, match=r"its starec differ.*is '9\.9'"):
        simulate(tmp_path / "run", resume=True)


def test_bytes_flipped_anywhere_in_a_record_are_mended_on_resuming(tmp_path: Path, whole: str) -> None:
    simulate(tmp_path / "run")
    path, rng = tmp_path / "run" / "steps.jsonl", random.Random(0)
    data = bytearray(path.read_bytes())
    lines = data.count(b"\n")
    for _ in range(5):
        data[rng.randrange(len(data))] = 0
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="moved to steps.damaged"):
        simulate(tmp_path / "run", resume=True)
    assert lines == whole.count("\n") and record(tmp_path / "run") == whole

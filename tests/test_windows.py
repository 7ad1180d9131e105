"""What starec does on Windows, as far as it can be tried without one: by taking away what isn't there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from starec_agents.runs.store import RunStore
from starec_agents.serving.serve import start_server
from starec_env.errors import InvalidOption, RunError

READ_AND_STEP = """
import os, sys
sys.modules.update(fcntl=None, resource=None)
for name in ("killpg", "fork", "getppid", "pwrite", "pread", "ftruncate", "getuid"):
    delattr(os, name)
import gymnasium, starec_env, starec_agents.runs.reading, starec_eval.commands
env = gymnasium.make("starec/UserFeedback-v0")
env.reset(seed=0)
print(env.step(env.action_space.sample())[1])
"""


def test_the_environment_is_stepped_and_runs_are_read_without_posix() -> None:
    done = subprocess.run([sys.executable, "-c", READ_AND_STEP], capture_output=True, text=True)
    assert done.returncode == 0 and -1 <= float(done.stdout) <= 1, done.stderr


def test_a_run_that_can_not_be_written_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pwrite")
    with pytest.raises(RunError, match="a run can't be written on"):
        RunStore(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_a_server_that_could_not_be_stopped_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(InvalidOption, match="no server is started on"):
        start_server("starec-nano")

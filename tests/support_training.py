"""What tests of training share beside the fixtures: `from support_training import losses`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from starec_agents.llm.scripted import scripted_user
from starec_env.cli import main

ROOT = Path(__file__).parents[1]
AGENT: dict[str, Any] = {"answer_format": "compact", "max_history": 2}
"""Short prompts for a tiny policy."""


def starec(*args: object) -> int:
    """The exit status of `starec train` with these arguments, in this process."""
    with pytest.raises(SystemExit) as stop:
        main(["train", *map(str, args)])
    return int(stop.value.code or 0)


def drawn_user(body: dict[str, Any]) -> str:
    """Answers as vLLM does for DeepSeek-R1: a thought without its opening tag, drawn by the request's seed."""
    said = scripted_user(body["seed"])(body["messages"], {}).rpartition("</think>\n")[2]
    return f"The user took three dramas of late.\n</think>\n\n{said}"


def losses(out: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step, from the last checkpoint's log."""
    last = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry}


def logged(out: Path, name: str) -> list[float]:
    """A metric's values at the steps that have it."""
    last = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in log if entry.get(name) is not None]


def environment() -> dict[str, str]:
    """For child processes: one thread each, this checkout's packages."""
    roots = [str(ROOT), *(str(ROOT / folder) for folder in ("agents", "training", "eval"))]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(roots), "CUDA_VISIBLE_DEVICES": ""}


def kill_when_there(command: Sequence[object], path: Path, timeout: float = 240) -> None:
    """Run `starec` with a command until it has written to a file, then kill -9."""
    child = subprocess.Popen(
        [sys.executable, "-m", "starec_env.cli", *map(str, command)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + timeout
    while not path.exists() or not path.stat().st_size:
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            raise AssertionError(f"{path} never came: {child.communicate()[0][-3000:]}")
        time.sleep(0.01)
    child.kill()
    child.communicate()

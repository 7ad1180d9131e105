"""`starec demo`, as someone meets it who has read nothing: what it prints, and what it leaves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_demo_says_what_it_does_ends_with_a_table_a_turn_and_commands_that_work(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-m", "starec", "demo", "--users", "3", "--turns", "1", "--no-card"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"COLUMNS": "110"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert re.findall(r"(\d) of 6", said) == ["1", "2", "3", "4", "5"]
    for row in ("the agents, with starec-nano", "a random order", "the most watched first"):
        assert re.search(rf"{row} │ +\d+ ± \d+", said), row
    assert re.search(r"a random order │ \d+\.\d ± \d\.\d", said)
    assert "The user took" in said and "memory after learning" in said
    assert "reading:" not in said and "Holm" not in said
    (run,) = (tmp_path / "runs").iterdir()
    show, report, loop = re.findall(r"^   (\S.*?) +# ", done.stdout, re.M)
    assert f"starec show {run.relative_to(tmp_path)} --user " in show
    subprocess.run(show, shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert str(run.relative_to(tmp_path)) in report and "--recommenders random,pop,item-knn" in loop
    (server,) = set(re.findall(r"http://127.0.0.1:\d+", said))
    gone = f"import urllib.request as r; r.urlopen('{server}/health')"
    assert "Connection refused" in subprocess.run([sys.executable, "-c", gone], capture_output=True, text=True).stderr

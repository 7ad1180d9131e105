"""Every snippet of the README runs, in order, in one folder, against a server that stands in for localhost:8000."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, scripted

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"^```(python|bash)\n(.*?)^```", README, flags=re.S | re.M)


@pytest.fixture(scope="module")
def endpoint():  # type: ignore[no-untyped-def]
    with FakeEndpoint(scripted(), models=("starec-nano",)) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_readme_has_a_snippet_for_each_use() -> None:
    assert len(SNIPPETS) >= 4


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_of_the_readme_runs(number: int, endpoint, folder: Path) -> None:  # type: ignore[no-untyped-def]
    language, code = SNIPPETS[number]
    code = code.replace("http://localhost:8000/v1", endpoint.url)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

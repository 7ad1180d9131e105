"""`make test-reproduce`: each recipe runs whole at scale tiny, every step a process; minutes on two cores."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from starec.reproduce import RECIPES, plan, read_recipe, reproduce

pytestmark = pytest.mark.reproduce


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all recipes: what two of them need is made once."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def run(out: Path) -> Callable[[str], str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def called(recipe: str) -> str:
        done = CliRunner().invoke(reproduce, [recipe, "--scale", "tiny", "--out", str(out), "--port", str(port)])
        assert done.exit_code == 0, f"{done.output}\n{done.exception}"
        return done.output

    return called


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_whole_and_says_where_its_results_are(recipe: str, out: Path, run: Callable[[str], str]) -> None:
    said, known = run(recipe), read_recipe(recipe)
    assert f"written to {out / 'eval'}" in said
    assert all(step.finished for step in plan(recipe, "tiny", out, port=_port(out)))
    made = json.loads((out / "eval" / "section5.json").read_text())
    if "table" in known:
        assert [row[0] for row in made["tables"][0]["rows"]] == list(known["rows"])
        assert "in brackets the paper's" in said
    else:
        assert made["figures"][0]["series"]
    number = len(plan(recipe, "tiny", out, port=_port(out)))
    assert f"{number} steps, {number} of them done" in run(recipe)


def _port(out: Path) -> int:
    record = json.loads((out / "ml-latest-small" / "taught" / "done.json").read_text())
    return int(record["serve"]["port"])

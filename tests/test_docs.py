"""The pages are true: their Python runs, their links lead somewhere, their pictures are the script's.

The site itself is built by `make docs`, where a broken link or heading is an error too.
"""

import ast
import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
RUN = ("environment", "own-data", "own-recommender", "own-reward")
"""Pages whose code needs no server; docs/agents.md, docs/servers.md and the README have tests of their own."""


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.M | re.S)
    assert blocks
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, f"docs/{page}.md", "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_sites_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    made = {"index.md", "examples.md", "nano.md", "commands.md", "contributing.md", "changelog.md"}
    assert set(re.findall(r": ([\w/-]+\.md)", menu)) == pages | made


def test_pictures_are_what_the_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures" / "draw.py"))
    files = {path.stem: path.read_text() for path in (ROOT / "docs" / "pictures").glob("*.svg")}
    del files["closed-loop"]  # a loop's own figure, of figures that took minutes
    assert files == {name: drawn["svg"](picture) for name, picture in drawn["PICTURES"].items()}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs_and_says_what_it_shows_and_how_long_it_takes(path: Path) -> None:
    # `make test-notebooks` executes them.
    first, *others = json.loads(path.read_text())["cells"]
    assert first["cell_type"] == "markdown" and re.search("second|minute", "".join(first["source"]))
    code = [cell for cell in others if cell["cell_type"] == "code"]
    assert len(code) >= 2 and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    for cell in code:
        compile("".join(cell["source"]), path.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

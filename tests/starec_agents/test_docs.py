import re
from dataclasses import fields
from pathlib import Path

from prompts_page import prompts_page

import starec_agents.planner as planner
from starec_agents.graph import Context, State

AGENTS = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", AGENTS, re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[str]:
    """First cells of the table under a heading."""
    section = AGENTS.split(f"### {heading}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_the_code_of_the_page_on_agents_runs():
    names = {"__name__": "docs"}
    for block in BLOCKS:
        exec(compile(block, "docs/agents.md", "exec", dont_inherit=True), names)
    assert names["memory"].profile.startswith("Has moods")
    assert names["agent"].executor == "direct"


def test_the_page_shows_the_planner_graph_as_it_is():
    assert Path(planner.__file__).read_text() in BLOCKS


def test_the_page_shows_what_an_agent_sees():
    shown = AGENTS.split("<!-- prompts: begin -->\n")[1].split("<!-- prompts: end -->")[0]
    assert shown == prompts_page()


def test_the_page_has_all_keys_of_state_and_context():
    assert rows("The state") == list(State.__annotations__)
    assert rows("The context") == [field.name for field in fields(Context)]

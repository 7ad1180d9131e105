"""Draws the pictures of these pages: run it after a change; a test holds that the files are what it draws.

    python docs/pictures/draw.py

A picture is boxes on a grid and arrows between them. Colours follow the reader's light or dark mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

COLUMN, ROW, WIDTH, LINE, MARGIN = 236, 118, 172, 19, 14
FIRST = ("", ' class="first"')
STYLE = """
.box{fill:#fff;stroke:#5b6472;stroke-width:1.4}.model{fill:#e6eefc;stroke:#3d6fc4}.file{fill:#eef6ea;stroke:#5c8f45}
.user{fill:#fdf0e1;stroke:#c07a2b}text{font:14px system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1c2430}
.first{font-weight:600}.label{font-size:12.5px;fill:#4a5362;paint-order:stroke;stroke:#fbfbfd;stroke-width:5px;stroke-linejoin:round}.line{fill:none;stroke:#5b6472;stroke-width:1.6}
.head{fill:#5b6472}.ground{fill:#fbfbfd;stroke:#e1e4ea}
@media (prefers-color-scheme:dark){.ground{fill:#20242c;stroke:#363c48}.box{fill:#2b303a;stroke:#9aa4b5}
.model{fill:#24344f;stroke:#7fa8ee}.file{fill:#26362a;stroke:#8fc279}.user{fill:#42331f;stroke:#dba35f}
text{fill:#e8ebf1}.label{fill:#b9c1ce;stroke:#20242c}.line{stroke:#9aa4b5}.head{fill:#9aa4b5}}
"""


@dataclass(frozen=True)
class Box:
    """A box of the grid: `at` is column and row, in halves if need be; the first line of `text` is bold."""

    at: tuple[float, float]
    text: str
    kind: str = "box"

    @property
    def lines(self) -> list[str]:
        """The text's lines."""
        return self.text.split("\n")

    @property
    def centre(self) -> tuple[float, float]:
        """Where it is, in pixels."""
        column, row = self.at
        return MARGIN + WIDTH / 2 + column * COLUMN, MARGIN + 38 + row * ROW

    @property
    def height(self) -> float:
        """In pixels."""
        return LINE * len(self.lines) + 22


@dataclass(frozen=True)
class Arrow:
    """From box to box, by their names; a label stands beside its middle. `shift` moves it sideways, in pixels."""

    start: str
    end: str
    label: str = ""
    shift: float = 0
    both: bool = False


@dataclass(frozen=True)
class Picture:
    """Boxes by name, arrows, and what a reader who can't see it is told."""

    title: str
    boxes: dict[str, Box]
    arrows: tuple[Arrow, ...]


def svg(picture: Picture) -> str:
    """The picture as a file."""
    boxes = picture.boxes.values()
    width = max(box.centre[0] for box in boxes) + WIDTH / 2 + MARGIN
    height = max(box.centre[1] + box.height / 2 for box in boxes) + MARGIN
    arrows = "\n".join(_arrow(arrow, picture.boxes) for arrow in picture.arrows)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" \
height="{height:.0f}" role="img" aria-label="{escape(picture.title)}">
<title>{escape(picture.title)}</title>
<style>{STYLE}</style>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" \
orient="auto-start-reverse"><path class="head" d="M0 0L10 5L0 10z"/></marker></defs>
<rect class="ground" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="10"/>
{chr(10).join(map(_box, boxes))}
{arrows}
</svg>
"""


def _box(box: Box) -> str:
    (x, y), height = box.centre, box.height
    first = y - LINE * (len(box.lines) - 1) / 2 + 5
    lines = "".join(
        f'<text{FIRST[i == 0]} x="{x:.0f}" y="{first + LINE * i:.0f}" text-anchor="middle">{escape(line)}</text>'
        for i, line in enumerate(box.lines)
    )
    rectangle = f'x="{x - WIDTH / 2:.0f}" y="{y - height / 2:.0f}" width="{WIDTH}" height="{height:.0f}" rx="8"'
    return f'<rect class="box {box.kind}" {rectangle}/>{lines}'


def _arrow(arrow: Arrow, boxes: dict[str, Box]) -> str:
    start, end = boxes[arrow.start], boxes[arrow.end]
    (x0, y0), (x1, y1) = start.centre, end.centre
    if abs(x1 - x0) < WIDTH:  # upright
        down = 1 if y1 > y0 else -1
        x0, x1 = x0 + arrow.shift, x1 + arrow.shift
        y0, y1 = y0 + down * start.height / 2, y1 - down * end.height / 2
        place, anchor = (x0 + x1) / 2 + 8, "start"
        top = (y0 + y1) / 2
    else:
        right = 1 if x1 > x0 else -1
        y0, y1 = y0 + arrow.shift, y1 + arrow.shift
        x0, x1 = x0 + right * WIDTH / 2, x1 - right * WIDTH / 2
        place, anchor = (x0 + x1) / 2, "middle"
        top = (y0 + y1) / 2 - 8 - 13 * arrow.label.count("\n")
    ends = ' marker-start="url(#head)"' if arrow.both else ""
    line = f'<path class="line" d="M{x0:.0f} {y0:.0f}L{x1:.0f} {y1:.0f}" marker-end="url(#head)"{ends}/>'
    words = (
        f'<text class="label" x="{place:.0f}" y="{top + 4 + 14 * i:.0f}" text-anchor="{anchor}">{escape(part)}</text>'
        for i, part in enumerate(arrow.label.split("\n"))
        if part
    )
    return line + "".join(words)


PICTURES = {
    "turn": Picture(
        "A turn: the environment shows candidates, the agent ranks them, the environment tells what the user really "
        "did, the agent reflects and rewrites its memory",
        {
            "data": Box((0, 0.5), "real interactions\nof real users", "file"),
            "env": Box((1, 0.5), "environment\nreplays the stream:\nthe next item and\n19 others"),
            "rank": Box((2.35, 0), "fast thinking\nthe agent ranks them", "model"),
            "learn": Box((2.35, 1), "slow thinking\ncompare, reflect", "model"),
            "memory": Box((3.35, 0.5), "memory\nprofile and events", "user"),
        },
        (
            Arrow("data", "env"),
            Arrow("env", "rank", "candidates", -14),
            Arrow("rank", "env", "ranking", 6),
            Arrow("env", "learn", "what the user did", 8),
            Arrow("learn", "memory", "rewrites", 6),
            Arrow("memory", "rank", "", -2),
        ),
    ),
    "graph": Picture(
        "The agent's graph in two halves: without feedback it ranks, with feedback it compares, reflects and updates "
        "the memory",
        {
            "start": Box((0, 0.5), "START\nis there feedback?"),
            "rank": Box((1.05, 0), "rank\none call of the model", "model"),
            "compare": Box((1.05, 1), "compare\nprediction, feedback"),
            "reflect": Box((2.05, 1), "reflect\none call of the model", "model"),
            "update": Box((3.05, 1), "update_memory\nprofile and event", "user"),
            "ranking": Box((2.05, 0), "END\na ranking"),
        },
        (
            Arrow("start", "rank", "no"),
            Arrow("start", "compare", "yes"),
            Arrow("rank", "ranking"),
            Arrow("compare", "reflect"),
            Arrow("reflect", "update"),
        ),
    ),
    "population": Picture(
        "A population: users in flight in one or several workers ask one or several servers; each finished step is "
        "appended to a record, of which tables, traces and training rows are made",
        {
            "users": Box((0, 0.5), "users\neach an environment,\nan agent, a memory", "user"),
            "workers": Box((1, 0.5), "workers\n1 process, 8, or Ray:\nthe result is the same"),
            "servers": Box((2.1, 0), "servers\nOpenAI-compatible,\none or several", "model"),
            "record": Box((2.1, 1), "record\na line a finished step", "file"),
            "tables": Box((3.1, 1), "what is made of it\ntable, report, traces,\ntraining rows", "file"),
        },
        (
            Arrow("users", "workers"),
            Arrow("workers", "servers", "", 0, True),
            Arrow("workers", "record", "", 0),
            Arrow("record", "tables"),
        ),
    ),
    "protocol": Picture(
        "Evaluation: every method ranks the same saved lists of candidates; ranks become means with errors over users",
        {
            "users": Box((0, 0.5), "test users\nlast item held out", "user"),
            "lists": Box((1, 0.5), "saved lists\ntarget and 19 others,\nwith a hash", "file"),
            "classical": Box((2, 0), "classical rankers\npopularity to SASRec"),
            "agents": Box((2, 1), "agents\nand LLM rankers", "model"),
            "table": Box((3, 0.5), "table\nNDCG, HR, MRR,\nerrors over users", "file"),
        },
        (
            Arrow("users", "lists"),
            Arrow("lists", "classical"),
            Arrow("lists", "agents"),
            Arrow("classical", "table"),
            Arrow("agents", "table"),
        ),
    ),
    "training": Picture(
        "Training: a teacher's answers become rows for SFT, whose model is the anchor; rounds of collecting and GRPO "
        "follow, held near the anchor",
        {
            "teacher": Box((0, 0), "teacher\nrules, or a large LLM;\nnever hears the target", "model"),
            "rows": Box((1, 0), "rows\nprompts and answers", "file"),
            "sft": Box((2, 0), "SFT\ngives the anchor"),
            "collect": Box((2, 1), "collect\npolicy lives as agents", "user"),
            "grpo": Box((3, 1), "GRPO\nreward: what the user\ndid; KL to the anchor"),
            "final": Box((3, 0), "trained agent\nwith a card: who it saw", "model"),
        },
        (
            Arrow("teacher", "rows"),
            Arrow("rows", "sft"),
            Arrow("sft", "collect"),
            Arrow("collect", "grpo", "", -8),
            Arrow("grpo", "collect", "rounds", 12),
            Arrow("grpo", "final"),
        ),
    ),
    "loop": Picture(
        "The closed loop: a recommender shows a slate, a simulated user answers with what it takes, rates and whether "
        "it leaves, and the answer enters the history",
        {
            "recommender": Box((0, 0.5), "recommender\nyours, or one of ours"),
            "env": Box((1.1, 0.5), "environment\nstarec/Recommend-v0"),
            "twin": Box((2.2, 0), "statistical twin\nfast, fitted on logs", "user"),
            "agent": Box((2.2, 1), "LLM agent\nor replayed logs", "model"),
            "card": Box((3.2, 0.5), "fidelity card\nhow far to trust it", "file"),
        },
        (
            Arrow("recommender", "env", "slate", -10),
            Arrow("env", "recommender", "", 10),
            Arrow("env", "twin", "", 0, True),
            Arrow("env", "agent", "", 0, True),
            Arrow("twin", "card"),
            Arrow("agent", "card"),
        ),
    ),
    "architecture": Picture(
        "The packages and which imports which: starec_env is imported by starec_agents, which training and eval import",
        {
            "env": Box((0, 0.5), "starec_env\ndata, types, metrics,\nreplay/, recommend/"),
            "agents": Box((1, 0.5), "starec_agents\nllm/, tasks/, graphs,\nruns/, serving/"),
            "training": Box((2, 0), "starec_training\nteacher, SFT, GRPO,\nrewards"),
            "eval": Box((2, 1), "starec_eval\nprotocol, rankers/,\nreport/, demo"),
            "facade": Box((3, 0.5), "starec\nnames of all, and\nthe command line"),
        },
        (
            Arrow("env", "agents"),
            Arrow("agents", "training"),
            Arrow("agents", "eval"),
            Arrow("training", "facade"),
            Arrow("eval", "facade"),
        ),
    ),
}


def main() -> None:
    """Write them beside this file."""
    for name, picture in PICTURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(svg(picture), encoding="utf-8")


if __name__ == "__main__":
    main()

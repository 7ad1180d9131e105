"""The card as tables and figures: Markdown, HTML, the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starec_agents.runs.store import writing
from starec_env.metrics import Estimate
from starec_eval.fidelity.card import FLOOR, MODEL, REAL, Card, Measure, Value
from starec_eval.report.figures import FigureData
from starec_eval.report.tables import TableData, in_markdown

HTML = "card.html"
_FIRST = (MODEL, FLOOR, REAL)
_DIGITS = {"percent": 1, "stars": 3, "nats": 3, "share": 3, "points": 1, "items": 0, "rows": 1}
_SIGNS = {"percent": " %", "stars": "", "nats": "", "share": "", "points": "", "items": "", "rows": ""}
_GROUPED = ("ndcg@10", "log_likelihood", "accuracy@1:1", "rmse", "surplus", "like_rate")
_SUMMARY = (
    *("ndcg@10", "log_likelihood", "choice_ece", "accuracy@1:1", "rmse", "like_auc", "surplus"),
    *("tau", "told_apart", "gap", "tstr_share"),
)
_DRAWN = {"ndcg@10": "NDCG@10, percent", "rmse": "RMSE, stars"}

_ORDER = (
    "Recommenders trained on real rows: on real lists, on lists whose target the user model drew, and on real lists as "
    "the model expects."
)


def tables(card: Card) -> list[TableData]:
    """A table a section, and one of groups of users."""
    found = [_table(section.title, section.measures, [section.about]) for section in card.sections]
    return [*found, *([groups] if (groups := _groups(card)).rows else [])]


def summary(card: Card) -> TableData:
    """A card's main figures in one small table, for a report on several things."""
    chosen = [measure for section in card.sections for measure in section.measures if measure.key in _SUMMARY]
    return _table(f"Fidelity of {card.user} on {card.dataset}, seed {card.seed}", chosen, [f"All of it: {HTML}."])


def figures(card: Card) -> list[FigureData]:
    """What varies by group, and recommenders' order."""
    measures = {measure.key: measure for section in card.sections for measure in section.measures}
    found = [
        _by_group(measures[key], label) for key, label in _DRAWN.items() if key in measures and measures[key].groups
    ]
    ordered = [measure for key, measure in measures.items() if key.startswith("order:")]
    if ordered:
        series = {
            column: [
                _point(m.name.removeprefix("NDCG@10 of "), m.values[column]) for m in ordered if column in m.values
            ]
            for column in (REAL, MODEL, f"{MODEL}, expected")
        }
        found.append(FigureData("Order of recommenders", _ORDER, "", "NDCG@10, percent", series, bars=True))
    return found


def head(card: Card) -> list[str]:
    """What the card is of, a line each."""
    settings = ", ".join(f"{name}={value}" for name, value in card.settings.items())
    return [
        f"user model: {card.user}; data: {card.dataset}, {card.data_hash}; lists: {card.candidates}; seed {card.seed}; "
        f"starec {card.starec}; card version {card.version}",
        f"asked: {settings}",
        *card.notes,
        *([f"problems of answers: {_counts(card.problems)}"] if card.problems else []),
        *(f"left out: {name}, since {why}" for name, why in card.left_out.items()),
        "± is one standard error over users where nothing else is said",
    ]


def to_markdown(card: Card) -> str:
    """All of it, as Markdown."""
    title = in_markdown(f"Fidelity of {card.user} on {card.dataset}")
    lines = [f"# {title}", "", *(f"- {in_markdown(line)}" for line in head(card)), ""]
    return "\n".join([*lines, *(table.to_markdown() for table in tables(card))])


def write(card: Card, out: Path) -> None:
    """Write card.md, and card.html where what a report needs is installed."""
    from importlib.util import find_spec

    pages = {"card.md": to_markdown(card)}
    if all(map(find_spec, ("jinja2", "matplotlib"))):
        from starec_eval.report.page import page_html

        title = f"starec: fidelity of {card.user} on {card.dataset}"
        about = TableData("What was measured", [], [], head(card))
        pages[HTML] = page_html(title, [about, *tables(card)], figures(card), [], timelines=False)
    with writing(out):
        for name, text in pages.items():
            (out / name).write_text(text, encoding="utf-8", errors="replace")


def _counts(problems: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(problems.items()))


def _table(title: str, measures: list[Measure], notes: list[str]) -> TableData:
    columns = _columns(measures)
    rows = [[m.name, *(_cell(m, m.values.get(column)) for column in columns)] for m in measures]
    return TableData(title, ["", *columns], rows, notes)


def _groups(card: Card) -> TableData:
    chosen = [m for section in card.sections for m in section.measures if m.groups and m.key in _GROUPED]
    groups = list(dict.fromkeys(group for measure in chosen for group in measure.groups))
    rows = [[group, *(_cell(measure, measure.groups[group].get(MODEL)) for measure in chosen)] for group in groups]
    note = (
        "The user model's, by thirds of how many rows it had seen of a user, and by demographics where the data set "
        "has them; card.json has the floor's and all measures'."
    )
    return TableData("By group of users", ["group", *(measure.name for measure in chosen)], rows, [note])


def _columns(measures: list[Measure]) -> list[str]:
    met = list(dict.fromkeys(column for measure in measures for column in measure.values))
    return [column for column in _FIRST if column in met] + [column for column in met if column not in _FIRST]


def _cell(measure: Measure, value: Value | None) -> str:
    if value is None:
        return ""
    if value.mean is None:
        return "-"
    digits, sign = _DIGITS[measure.unit], _SIGNS[measure.unit]
    error = "" if value.se is None else f" ± {value.se:.{digits}f}"
    return f"{value.mean:.{digits}f}{error}{sign}"


def _by_group(measure: Measure, label: str) -> FigureData:
    series = {
        column: [_point(group, values[column]) for group, values in measure.groups.items()] for column in (MODEL, FLOOR)
    }
    return FigureData(
        f"{measure.name} by group", "Groups of users; popularity is the floor.", "", label, series, bars=True
    )


def _point(label: str, value: Value) -> Estimate:
    nan = float("nan")
    return Estimate(label, nan if value.mean is None else value.mean, nan if value.se is None else value.se, value.n)

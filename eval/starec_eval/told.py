"""What a report tells of recorded runs: their steps, what is known of the items, and the tables and figures of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starec_agents.llm.base import Call
from starec_agents.runs.steps import Step
from starec_agents.runs.store import read_run, read_steps
from starec_env.errors import RunError
from starec_env.metrics import SHOWN, Estimate, Relevant, estimate, per_user
from starec_env.types import Id
from starec_eval import analysis
from starec_eval.analysis import step_ndcg
from starec_eval.figures import FigureData, TableData, score_cells, score_point
from starec_eval.memories import contradictions, memory_curves

MEMORY_USERS = 1000
"""Users whose memories are compared turn by turn; comparing words costs about a millisecond a turn."""
MOST_ANSWER = 2000
"""Characters of a model's answer that stories show."""


@dataclass(frozen=True)
class Told:
    """A run, or a method's runs on the repetitions of one evaluation."""

    name: str
    about: Mapping[str, Any]
    """`run.json` of the first."""
    folders: tuple[Path, ...]

    @cached_property
    def steps(self) -> list[Step]:
        """Steps of the first repetition, without their prompts."""
        return list(_slim(read_steps(self.folders[0])))

    @cached_property
    def repeated(self) -> list[list[Step]]:
        """Steps of each further repetition."""
        return [list(_slim(read_steps(folder))) for folder in self.folders[1:]]

    @cached_property
    def training(self) -> list[Call]:
        """Calls made before the first step, without their prompts; AgentCF has such."""
        path = self.folders[0].parent / "training.jsonl"
        if "repetition" not in self.about or not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        told = [call for line in lines for call in json.loads(line)["calls"]]
        return [Call.model_validate({**call, "messages": (), "completion": ""}) for call in told]

    @property
    def all_steps(self) -> list[Step]:
        """All of them."""
        return [*self.steps, *(step for steps in self.repeated for step in steps)]

    @property
    def held_out(self) -> list[Step]:
        """Each user's last step of each repetition: the leave-one-out turn."""
        return [step for steps in (self.steps, *self.repeated) for step in {s.user_id: s for s in steps}.values()]

    @property
    def relevant(self) -> Relevant:
        """Which targets the run's evaluation scores: those liked, unless its reading says otherwise."""
        return "taken" if "relevant=taken" in self.about.get("reading", "") else "liked"

    def last_ndcg(self) -> tuple[NDArray[np.float64], list[Id]]:
        """NDCG@10 of the held-out steps, nan where the target isn't scored, and whose each is."""
        steps = self.held_out
        return step_ndcg(steps, 10, self.relevant), [step.user_id for step in steps]

    @property
    def is_sampled(self) -> bool:
        """Whether it is a best-of-N pass, whose steps are samples of one turn."""
        return self.about.get("method") == "best-of"

    @cached_property
    def items(self) -> dict[Id, tuple[str, frozenset[str]]]:
        """Title and attribute values of every item shown."""
        found: dict[Id, tuple[str, frozenset[str]]] = {}
        for folder in self.folders:
            for row in pq.read_table(folder / "items.parquet").to_pylist():
                found[row["id"]] = (row["title"], analysis.attribute_words(dict(row.get("attributes") or ())))
        return found

    @cached_property
    def histories(self) -> dict[Id, list[tuple[Id, bool]]]:
        """Each user's items before the last turn, oldest first, and whether each was liked."""
        table = pq.read_table(self.folders[0] / "candidates.parquet")
        last = {user: row for row, user in enumerate(table["user_id"].to_pylist())}
        rows = table.take(list(last.values()))
        if "history_liked" not in table.column_names:
            return {}
        columns = (rows[name].to_pylist() for name in ("user_id", "history", "history_liked"))
        return {user: list(zip(*both, strict=True)) for user, *both in zip(*columns, strict=True)}

    @cached_property
    def attributes(self) -> dict[Id, frozenset[str]]:
        """Attribute values of every item shown."""
        return {item: words for item, (_, words) in self.items.items()}


def _slim(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        calls = tuple(
            call.model_copy(
                update={
                    "messages": (),
                    "completion": call.completion[:MOST_ANSWER],
                    "reasoning": call.reasoning[:MOST_ANSWER] if call.reasoning else None,
                    "token_ids": None,
                    "prompt_token_ids": None,
                    "logprobs": None,
                }
            )
            for call in step.calls
        )
        yield step.model_copy(update={"calls": calls, "ranking": step.ranking.model_copy(update={"text": ""})})


def find_runs(folders: Sequence[Path]) -> list[Told]:
    """All runs in some folders: a run's own, an evaluation's, or one that holds several of them.

    Raises:
        RunError: A folder holds neither a run nor an evaluation.
    """
    found: list[Told] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.rglob("run.json") if (path.parent / "steps.jsonl").exists())
        if not inside and not list(folder.rglob("results.json")):
            raise RunError(f"{folder} holds no run (run.json) and no evaluation (results.json): nothing to report")
        methods: dict[Path, list[Path]] = {}
        for path in inside:
            repeated = "repetition" in read_run(path)
            methods.setdefault(path.parent if repeated else path, []).append(path)
        for path, runs in methods.items():
            about = read_run(runs[0])
            found.append(Told(_name(about, path, folder), about, tuple(runs)))
    several = len({told.about["dataset"]["name"] for told in found}) > 1
    names = [f"{told.name} on {told.about['dataset']['name']}" if several else told.name for told in found]
    return [
        replace(told, name=name if names.count(name) == 1 else f"{name} #{names[: place + 1].count(name)}")
        for place, (told, name) in enumerate(zip(found, names, strict=True))
    ]


def _name(about: Mapping[str, Any], path: Path, folder: Path) -> str:
    name = about.get("method") or f"{about.get('graph', 'agent')} {path.name if path != folder else folder.name}"
    return f"best of {about['samples']}: {path.name}" if name == "best-of" else str(name)


def results_tables(folders: Sequence[Path]) -> Iterator[tuple[TableData, FigureData]]:
    """Each evaluation's table, and NDCG@10 of its methods as a figure."""
    for path in sorted({path for folder in folders for path in folder.rglob("results.json")}):
        whole = json.loads(path.read_text(encoding="utf-8"))
        rows = whole["rows"]
        metrics = [name for name in (*SHOWN, "mrr") if rows and name in rows[0]]
        columns = [
            [row["method"] for row in rows],
            *(score_cells(rows, metric) for metric in metrics),
            [f"{row['seconds']:,.1f}" for row in rows],
            [f"{row['violations']:,}" for row in rows],
        ]
        head = ["method", *(name.upper() for name in metrics), "seconds", "invalid"]
        title = f"{whole['dataset']}: ranking in percent ± standard error"
        points = [score_point(row["method"], row) for row in rows if row["ndcg@10"] is not None]
        heading, note = f"NDCG@10 on {whole['dataset']}", "Percent, with one standard error over users."
        yield (
            TableData(title, head, list(map(list, zip(*columns, strict=True))), whole.get("notes", ())),
            FigureData(heading, note, "", "NDCG@10, %", {"NDCG@10": points}, bars=True),
        )


def runs_table(runs: Sequence[Told], price_in: float, price_out: float) -> TableData:
    """A column a run: what it is, how well it ranked its last turns, what was wrong, what it favours, and its cost."""
    told = [run for run in runs if not run.is_sampled]
    columns = [_run_column(run, price_in, price_out) for run in told]
    rows = [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]
    notes = (
        "Targets that the user disliked are not scored.",
        "Position: places that the true item loses for each place that it stands later in the prompt; 0 is no bias.",
        "Popularity bias: mean percentile of the first five among their list's candidates, minus a half; 0 is none.",
        "Diversity: mean of 1 - Jaccard of the first five's attributes. Novelty: mean -log2 of the share of the run's "
        "users who had taken the item.",
        "Claims contradicted: of what the last memories say of attributes that the user rated at least three times, "
        "what the ratings deny; words are read, not understood, and in English alone.",
        "Tokens, seconds of waiting and cost are a user's mean.",
    )
    return TableData("Runs", ["", *(run.name for run in told)], rows, notes)


def _run_column(told: Told, price_in: float, price_out: float) -> dict[str, str]:
    steps = told.all_steps
    counts = analysis.popularity([item for item, _ in history] for history in told.histories.values())
    wrong = analysis.invalid_answers(steps)
    profiles = {step.user_id: step.memory.profile for step in told.steps}
    denied = contradictions(profiles, told.histories, told.attributes)
    likes, spent = analysis.calibration(steps), analysis.cost(steps, price_in, price_out, told.training)
    alarms = likes.false_alarms + likes.rejections
    values, owners = told.last_ndcg()
    top = estimate("", 100 * values, owners)
    words = [len(profile.split()) for profile in profiles.values()]
    found = {
        "model": str(told.about.get("model", "?")),
        "users, steps": f"{len(profiles):,}, {len(steps):,}",
        "NDCG@10 at the last turn, %": _shown(top),
        "invalid answers": f"{wrong.get('invalid', 0):.1%}",
        "answers that invent titles": f"{wrong.get('invented', 0):.1%}",
        "answers with equal scores": f"{wrong.get('tied', 0):.1%}",
        "position": _shown(analysis.position_slope(steps), 2),
        "popularity bias": _shown(analysis.popularity_bias(steps, counts), 2) if counts else "-",
        "diversity of the first 5": _shown(analysis.diversity(steps, told.attributes), 2),
        "novelty of the first 5, bits": _shown(analysis.novelty(steps, counts, len(told.histories)), 1)
        if counts
        else "-",
        "likes predicted rightly": f"{likes.hits} of {likes.hits + likes.misses}",
        "dislikes predicted rightly": f"{likes.rejections} of {alarms}" if alarms else "none asked",
        "words of the last memory": f"{np.mean(words):.0f}" if words else "-",
        "claims contradicted": f"{denied.contradicted} of {denied.testable}",
        "tokens in": f"{spent.prompt_tokens:,.0f}",
        "tokens out": f"{spent.completion_tokens:,.0f}",
        "seconds": f"{spent.seconds:,.1f}",
    }
    return found | ({"cost": f"{spent.money:.4f}"} if price_in or price_out else {})


def _shown(found: Estimate, digits: int = 1) -> str:
    if isnan(found.mean):
        return "-"
    return f"{round(found.mean, digits) + 0.0:.{digits}f}" + ("" if isnan(found.se) else f" ± {found.se:.{digits}f}")


def contradiction_table(runs: Sequence[Told]) -> TableData:
    """What memories say that their users' ratings deny."""
    rows = []
    for told in runs:
        if told.is_sampled:
            continue
        profiles = {step.user_id: step.memory.profile for step in told.steps}
        for user, claim, liked, rated in contradictions(profiles, told.histories, told.attributes).examples[:5]:
            verb = "likes" if claim.likes else "dislikes"
            rows.append([told.name, str(user), f"{verb} {claim.attribute}", f"{liked} of {rated}", claim.clause[:200]])
    return TableData("Memories that the ratings deny", ["run", "user", "says", "liked", "in the words"], rows)


def run_figures(runs: Sequence[Told]) -> Iterator[FigureData]:
    """The figures that some runs' steps can make; those without data are left out."""
    told, sampled = [run for run in runs if not run.is_sampled], [run for run in runs if run.is_sampled]
    yield _of(
        told,
        "Learning",
        "NDCG@10 by how many turns of the run the agent has learned from.",
        "turns learned from",
        "NDCG@10",
        lambda run: analysis.learning_curve(run.steps, 10, run.relevant),
        2,
    )
    yield _of(
        told,
        "Activity",
        "NDCG@10 of the last turn by interactions in the user's sequence (5.3.3).",
        "",
        "NDCG@10",
        _activity,
    )
    if sampled:
        series = {run.name: _best_of(run) for run in sampled}
        best = sorted((_level(run), run.name) for run in told)[-1:]
        note = "NDCG@10 of the best of N sampled answers (5.3.4), beside the best run with one answer each."
        yield FigureData("Best of N", note, "N", "NDCG@10", series, lines={name: level for level, name in best})
    yield _of(
        told,
        "Position bias",
        "Mean rank of the true item by its place in the prompt; equal bars are no bias.",
        "",
        "mean rank",
        lambda run: analysis.position_bias(run.all_steps),
        2,
    )
    judged = [run for run in told if not all(step.feedback.liked for step in run.steps)]
    note = "Share of the true items that the user liked, by where they were ranked; it falls if predictions hold."
    yield _of(judged, "Calibration", note, "", "share liked", _calibration)
    curves = {
        run.name: memory_curves(_some_users(run.steps)) for run in told if any(s.memory.profile for s in run.steps)
    }
    for name, y, note in (
        ("length", "words", "Words of the profile after each turn."),
        ("change", "share changed", "Share of the profile's words that each turn changed."),
        ("drift", "share changed", "How far the profile is from the one that the run began with."),
        ("repetition", "share repeated", "Share of the profile's three-word runs that it says again."),
    ):
        series = {run: getattr(curve, name) for run, curve in curves.items() if len(curve.length) > 1}
        yield FigureData(f"Memory: {name}", note, "turns learned from", y, series)
    yield _of(told, "Tokens", "Tokens a user, prompts and answers.", "", "tokens a user", _tokens)
    yield _of(
        told, "Latency", "Seconds from request to answer: median, and the slowest tenth.", "", "seconds", _latency
    )


def _of(
    runs: Sequence[Told],
    title: str,
    note: str,
    x: str,
    y: str,
    points: Callable[[Told], list[Estimate]],
    least: int = 1,
) -> FigureData:
    series = {run.name: found for run in runs if len(found := points(run)) >= least}
    return FigureData(title, note, x, y, series, bars=not x)


def _activity(run: Told) -> list[Estimate]:
    lengths = {user: len(history) + 1 for user, history in run.histories.items()}
    values, owners = run.last_ndcg()
    users = np.unique(np.asarray(owners)).tolist()
    means = {user: mean for user, mean in zip(users, per_user(values, owners).tolist(), strict=True) if user in lengths}
    groups = analysis.activity_groups(lengths, means, analysis.activity_bounds(run.about["dataset"]["name"]))
    return [group for group in groups if group.n]


def _calibration(run: Told) -> list[Estimate]:
    return [group for group in analysis.calibration(run.steps).by_rank if group.n]


def _best_of(run: Told) -> list[Estimate]:
    values = analysis.sampled_ndcg(run.steps, 10, run.relevant)
    return analysis.best_of(values, [n for n in analysis.BEST_OF if n <= values.shape[1]]) if values.size else []


def _level(run: Told) -> float:
    return estimate("", *run.last_ndcg()).mean


def _tokens(run: Told) -> list[Estimate]:
    spent = analysis.cost(run.all_steps, training=run.training)
    nan = float("nan")
    return [
        Estimate("prompts", spent.prompt_tokens, nan, spent.users),
        Estimate("answers", spent.completion_tokens, nan, spent.users),
    ]


def _latency(run: Told) -> list[Estimate]:
    found = [call.latency for call in (*run.training, *(call for step in run.all_steps for call in step.calls))]
    if not any(found):
        return []
    return [
        Estimate(name, float(np.quantile(found, share)), float("nan"), len(found))
        for name, share in (("median", 0.5), ("90 %", 0.9))
    ]


def _some_users(steps: Sequence[Step]) -> list[Step]:
    chosen = set(list(dict.fromkeys(step.user_id for step in steps))[:MEMORY_USERS])
    return [step for step in steps if step.user_id in chosen]

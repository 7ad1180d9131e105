"""The tables and figures that summarise evaluations and recorded runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from math import isnan
from pathlib import Path

import numpy as np

from starec_agents.runs.steps import Step
from starec_env.metrics import SHOWN, Estimate, estimate
from starec_eval.report import analysis
from starec_eval.report.data import Run
from starec_eval.report.figures import FigureData, score_point
from starec_eval.report.memory import MEMORY_CURVES, check_claims, memory_curves
from starec_eval.report.tables import TableData, results_table

MAX_MEMORY_USERS = 1000
"""Users whose memories are compared turn by turn; comparing words costs about a millisecond a turn."""
MAX_EXAMPLES = 5
"""Contradicted claims of a run that are quoted."""


def results_tables(folders: Sequence[Path]) -> Iterator[tuple[TableData, FigureData]]:
    """Each evaluation's table, and NDCG@10 of its methods as a figure."""
    for path in sorted({path for folder in folders for path in folder.rglob("results.json")}):
        whole = json.loads(path.read_text(encoding="utf-8"))
        rows = whole["rows"]
        metrics = [name for name in (*SHOWN, "mrr") if rows and name in rows[0]]
        seeds, over = f"seed {whole.get('seed', 0)}", "± standard error"
        if "seeds" in whole:
            seeds, over = f"seeds {', '.join(map(str, whole['seeds']))}", "with 95 % intervals over seeds and users"
        title = f"{whole['dataset']}, {seeds}: ranking in percent {over}"
        points = [score_point(row["method"], row) for row in rows if row["ndcg@10"] is not None]
        heading = f"NDCG@10 on {whole['dataset']}, {seeds}"
        note = f"Percent, with one standard error over {'seeds and ' if 'seeds' in whole else ''}users."
        yield (
            results_table(title, rows, metrics, whole.get("notes", ()), invalid=True),
            FigureData(heading, note, "", "NDCG@10, %", {"NDCG@10": points}, bars=True),
        )


def runs_table(runs: Sequence[Run], price_in: float, price_out: float) -> TableData:
    """A column a run: its size, quality on the held-out turns, invalid answers, biases, memory and cost."""
    columns = [_run_column(run, price_in, price_out) for run in runs]
    rows = [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]
    notes = (
        "Targets that the user disliked are not scored.",
        "Position bias: least-squares slope of the target's rank on its place in the prompt; 0 is no bias.",
        "Popularity bias: mean percentile of the first five among their list's candidates, minus 0.5; 0 is none.",
        "Diversity: mean of 1 - Jaccard of the first five's attributes. Novelty: mean -log2 of the share of the run's "
        "users who had interacted with the item.",
        "Memory claims contradicted: claims of the last memories about attributes with at least three ratings that "
        "those ratings contradict; found by word patterns, in English alone.",
        "Tokens, latency and cost are means a user.",
    )
    return TableData("Runs", ["", *(run.name for run in runs)], rows, notes)


def _run_column(run: Run, price_in: float, price_out: float) -> dict[str, str]:
    (values, owners), steps, profiles = run.last_ndcg, run.steps, run.profiles
    counts = analysis.popularity([item for item, _ in history] for history in run.histories.values())
    problems = analysis.invalid_answers(steps)
    claims = check_claims(profiles, run.histories, run.attributes)
    likes, spent = analysis.calibration(steps), analysis.cost(steps, price_in, price_out, run.training)
    dislikes = likes.false_alarms + likes.rejections
    words = [len(profile.split()) for profile in profiles.values()]
    unknown = Estimate("", float("nan"), float("nan"), 0)
    popularity_bias = analysis.popularity_bias(steps, counts) if counts else unknown
    novelty = analysis.novelty(steps, counts, len(run.histories)) if counts else unknown
    found = {
        "model": str(run.config.get("model", "?")),
        "users, steps": f"{len(profiles):,}, {len(steps):,}",
        "NDCG@10 at the last turn, %": _shown(estimate("", 100 * values, owners)),
        "invalid answers": f"{problems.get('invalid', 0):.1%}",
        "answers with invented titles": f"{problems.get('invented', 0):.1%}",
        "answers with tied scores": f"{problems.get('tied', 0):.1%}",
        "position bias": _shown(analysis.position_slope(steps), 2),
        "popularity bias": _shown(popularity_bias, 2),
        "diversity of the first 5": _shown(analysis.diversity(steps, run.attributes), 2),
        "novelty of the first 5, bits": _shown(novelty),
        "likes predicted": f"{likes.hits} of {likes.hits + likes.misses}",
        "dislikes predicted": f"{likes.rejections} of {dislikes}" if dislikes else "no disliked targets",
        "words of the last memory": f"{np.mean(words):.0f}" if words else "-",
        "memory claims contradicted": f"{claims['contradicted'].sum()} of {claims['testable'].sum()}",
        "prompt tokens": f"{spent.prompt_tokens:,.0f}",
        "completion tokens": f"{spent.completion_tokens:,.0f}",
        "latency, s": f"{spent.seconds:,.1f}",
    }
    return found | ({"cost": f"{spent.money:.4f}"} if price_in or price_out else {})


def _shown(found: Estimate, digits: int = 1) -> str:
    if isnan(found.mean):
        return "-"
    return f"{round(found.mean, digits) + 0.0:.{digits}f}" + ("" if isnan(found.se) else f" ± {found.se:.{digits}f}")


def claims_table(runs: Sequence[Run]) -> TableData:
    """Examples of what memories claim and their users' ratings contradict."""
    rows = []
    for run in runs:
        claims = check_claims(run.profiles, run.histories, run.attributes)
        for claim in claims[claims["contradicted"]].head(MAX_EXAMPLES).itertuples():
            said = f"{'likes' if claim.likes else 'dislikes'} {claim.attribute}"
            rows.append([run.name, str(claim.user), said, f"{claim.liked} of {claim.ratings}", claim.clause[:200]])
    head = ["run", "user", "claim", "ratings that are likes", "the memory's words"]
    return TableData("Memory claims that ratings contradict", head, rows)


def run_figures(runs: Sequence[Run], sampled: Sequence[Run]) -> Iterator[FigureData]:
    """The figures of some runs and best-of-N passes; a run without the data has an empty series."""
    for title, note, x, y, points in _FIGURES:
        yield FigureData(title, note, x, y, {run.name: points(run) for run in runs}, bars=not x)
    curves = {run.name: memory_curves(_some_users(run.first)) for run in runs}
    for name, (unit, note) in MEMORY_CURVES.items():
        series = {run: curve[name] if len(curve[name]) > 1 else [] for run, curve in curves.items()}
        yield FigureData(f"Memory: {name}", note, "turns learned from", unit, series)
    best = sorted((estimate("", *run.last_ndcg).mean, run.name) for run in runs)[-1:]
    note = "NDCG@10 of the best of N sampled answers (5.3.4), beside the best run with one answer each."
    series, lines = {run.name: _best_of(run) for run in sampled}, {name: level for level, name in best}
    yield FigureData("Best of N", note, "N", "NDCG@10", series, lines=lines)


def _learning(run: Run) -> list[Estimate]:
    found = analysis.learning_curve(run.first, 10, run.relevant)
    return found if len(found) > 1 else []


def _activity(run: Run) -> list[Estimate]:
    lengths = {user: len(history) + 1 for user, history in run.histories.items()}
    return analysis.activity_groups(lengths, *run.last_ndcg, analysis.activity_bounds(run.config["dataset"]["name"]))


def _position(run: Run) -> list[Estimate]:
    found = analysis.position_bias(run.steps)
    return found if len(found) > 1 else []


def _calibration(run: Run) -> list[Estimate]:
    all_liked = all(step.feedback.liked for step in run.first)
    return [] if all_liked else list(analysis.calibration(run.first).by_rank)


def _tokens(run: Run) -> list[Estimate]:
    spent = analysis.cost(run.steps, training=run.training)
    kinds = {"prompts": spent.prompt_tokens, "answers": spent.completion_tokens}
    return [Estimate(name, tokens, float("nan"), spent.users) for name, tokens in kinds.items()]


def _latency(run: Run) -> list[Estimate]:
    found = [call.latency for call in (*run.training, *(call for step in run.steps for call in step.calls))]
    shares = {"median": 0.5, "90th percentile": 0.9} if any(found) else {}
    return [
        Estimate(name, float(np.quantile(found, share)), float("nan"), len(found)) for name, share in shares.items()
    ]


_FIGURES: tuple[tuple[str, str, str, str, Callable[[Run], list[Estimate]]], ...] = (
    ("Learning", "NDCG@10 by number of turns learned from.", "turns learned from", "NDCG@10", _learning),
    ("Activity", "NDCG@10 of the last turn by length of the user's sequence (5.3.3).", "", "NDCG@10", _activity),
    ("Position bias", "Mean rank of the target by its place in the prompt: equal without bias.", "", "rank", _position),
    ("Calibration", "Share of targets liked, by rank: it falls if predictions hold.", "", "share liked", _calibration),
    ("Tokens", "Tokens a user.", "", "tokens a user", _tokens),
    ("Latency", "Seconds from request to answer.", "", "seconds", _latency),
)
"""Title, note, x and y of the figures that one function of a run makes; without an x they are bars."""


def _best_of(run: Run) -> list[Estimate]:
    values = analysis.sampled_ndcg(run.first, 10, run.relevant)
    return analysis.best_of(values) if values.size else []


def _some_users(steps: Sequence[Step]) -> list[Step]:
    chosen = set(list(dict.fromkeys(step.user_id for step in steps))[:MAX_MEMORY_USERS])
    return [step for step in steps if step.user_id in chosen]

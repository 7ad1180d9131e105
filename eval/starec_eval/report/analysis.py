"""What a run's steps say beyond one number: pure functions from steps to small tables of estimates.

Means are over users, and so are their standard errors: what one user did at several turns is averaged first. Functions
that group steps need pandas, of the `report` extra; it is loaded when one of them is called.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, log2
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starec_agents.llm.base import Call
from starec_agents.runs.steps import Step
from starec_env.errors import InvalidOption, MissingExtra
from starec_env.metrics import Estimate as Estimate
from starec_env.metrics import Relevant, ndcg, scored
from starec_env.metrics import estimate as estimate
from starec_env.types import Id

if TYPE_CHECKING:
    from pandas import DataFrame

TOP = 5
"""Places of a ranking whose items are looked at for popularity, diversity and novelty."""
BEST_OF = (1, 5, 10, 20, 50)
"""The paper's N (5.3.4)."""
_BOUNDS = {
    "ml": (("low, 10-24", 24), ("medium, 25-39", 39), ("high, 40", 10**9)),
    "amazon": (("low, 10-19", 19), ("medium, 20-39", 39), ("high, 40", 10**9)),
}


def step_ndcg(steps: Iterable[Step], k: int = 10, relevant: Relevant = "liked") -> NDArray[np.float64]:
    """(steps,) NDCG@k of each step, nan where its target isn't scored: a disliked one, unless `relevant` is "taken"."""
    pairs = [(step.feedback.rank, step.feedback.liked) for step in steps]
    return scored(ndcg([rank for rank, _ in pairs], k), [liked for _, liked in pairs], relevant)


def to_frame(rows: Iterable[tuple[Any, ...]], columns: str) -> DataFrame:
    """A pandas table of rows; ids stay as they are.

    Raises:
        MissingExtra: pandas isn't installed.
    """
    try:
        from pandas import DataFrame
    except ImportError:
        raise MissingExtra("analysing a run", "report") from None
    return DataFrame(rows, columns=columns.split()).astype({"user": object})


def step_frame(steps: Iterable[Step], k: int = 10, relevant: Relevant = "liked") -> DataFrame:
    """A pandas table with a row a step.

    Columns: `user`, `turn`, `position` (0-based place of the target in the list), `n_candidates`, `rank` (1-based, nan
    where the target isn't ranked), `liked`, `predicted_liked` and `ndcg` (see `step_ndcg`).
    """
    steps = list(steps)
    rows = [
        (s.user_id, s.turn, s.target, len(s.candidates), s.feedback.rank, s.feedback.liked, s.feedback.predicted_liked)
        for s in steps
    ]
    frame = to_frame(rows, "user turn position n_candidates rank liked predicted_liked")
    return frame.astype({"rank": float}).assign(ndcg=step_ndcg(steps, k, relevant))


def estimates(frame: DataFrame, by: str, value: str) -> list[Estimate]:
    """The mean of a column over users, for each group in the order of its first row; nan values are left out."""
    users = frame.dropna(subset=value).groupby([by, "user"], sort=False)[value].mean()
    table = users.groupby(level=0, sort=False).agg(["mean", "sem", "count"])
    return [Estimate(str(label), mean, se, n) for label, mean, se, n in table.itertuples()]


def activity_bounds(dataset: str) -> tuple[tuple[str, int], ...]:
    """Activity groups of 5.3.3, each with its longest sequence: CDs' bounds for Amazon data, else MovieLens'."""
    return _BOUNDS["amazon" if dataset.startswith("amazon") else "ml"]


def activity_groups(
    lengths: Mapping[Id, int], values: ArrayLike, users: Sequence[Id], bounds: Sequence[tuple[str, int]]
) -> list[Estimate]:
    """A metric by activity (5.3.3, Figure 2a); groups without a user are left out.

    Args:
        lengths: Interactions in each user's sequence, the target included; users without are left out.
        values: (cases,) the metric.
        users: (cases,).
        bounds: `activity_bounds(dataset)`, or your own.
    """
    most = [bound for _, bound in bounds]
    group = np.array([np.searchsorted(most, lengths[user]) if user in lengths else -1 for user in users])
    array, owners = np.asarray(values, np.float64), np.asarray(users)
    found = [estimate(label, array[group == at], owners[group == at]) for at, (label, _) in enumerate(bounds)]
    return [each for each in found if each.n]


def best_of(values: ArrayLike, ns: Sequence[int] | None = None) -> list[Estimate]:
    """Best of N samples (5.3.4, Figure 2b), for every n from one pass of N samples a user.

    The best of the first n of them would waste the others. The mean over all subsets of n, which is unbiased
    (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", use the same for pass@k), is
    `sum_i C(i - 1, n - 1) v_(i) / C(N, n)` over the values sorted upwards.

    Args:
        values: (users, N) a metric of each sample.
        ns: Each at most N; None for those of `BEST_OF` that are.

    Raises:
        InvalidOption: An n is larger than N.
    """
    ordered = np.sort(np.atleast_2d(np.asarray(values, dtype=np.float64)), axis=1)
    total = ordered.shape[1]
    if ns is None:
        ns = [n for n in BEST_OF if n <= total]
    if max(ns) > total or min(ns) < 1:
        raise InvalidOption(f"best of {max(ns)}: wanted 1 to {total}, as many as were sampled")
    users = range(len(ordered))
    weights = {n: np.array([comb(i, n - 1) / comb(total, n) for i in range(total)]) for n in ns}
    return [estimate(n, ordered @ weights[n], list(users)) for n in ns]


def sampled_ndcg(steps: Iterable[Step], k: int = 10, relevant: Relevant = "liked") -> NDArray[np.float64]:
    """(users, N) NDCG@k of a best-of-N run, whose steps are the samples.

    Users with fewer samples are left out, and so are those whose target isn't scored (see `step_ndcg`).
    """
    steps = list(steps)
    rows: dict[Id, list[float]] = defaultdict(list)
    for step, value in zip(steps, step_ndcg(steps, k, relevant).tolist(), strict=True):
        rows[step.user_id].append(value)
    longest = max(map(len, rows.values()), default=0)
    whole = [row for row in rows.values() if len(row) == longest and not np.isnan(row).any()]
    return np.array(whole).reshape(len(whole), longest)


def learning_curve(steps: Iterable[Step], k: int = 10, relevant: Relevant = "liked") -> list[Estimate]:
    """NDCG@k against the number of turns that the agent has learned from.

    Users have streams of different lengths, and disliked targets aren't scored, so points may be means of fewer users:
    `n` is their number.
    """
    frame = step_frame(steps, k, relevant).sort_values("turn", kind="stable")
    frame["learned"] = frame.groupby("user").cumcount()
    return estimates(frame.sort_values("learned", kind="stable"), "learned", "ndcg")


def position_bias(steps: Iterable[Step], bands: int = 4) -> list[Estimate]:
    """Mean rank of the target, liked or not, against its place in the prompt; one that isn't ranked counts as last.

    Without bias all are equal: places are drawn by chance.

    Args:
        steps: A run's.
        bands: Equal parts of the prompt's list whose places are pooled; a label such as "6-10" is 1-based.
    """
    frame = step_frame(steps)
    n, band = frame["n_candidates"], frame["position"] * bands // frame["n_candidates"]
    frame = frame.assign(first=-(-band * n // bands) + 1, stop=-(-(band + 1) * n // bands), place=_places(frame))
    frame = frame.sort_values(["first", "stop"], kind="stable")
    frame["band"] = [
        f"{first}-{stop}" if stop > first else stop for first, stop in zip(frame["first"], frame["stop"], strict=True)
    ]
    return estimates(frame, "band", "place")


def position_slope(steps: Iterable[Step]) -> Estimate:
    """Least-squares slope of the target's rank on its place in the prompt; 0 is no bias, 1 keeps the prompt's order.

    Its standard error is clustered by user: each user's share in the slope is one term of a sum.
    """
    frame = step_frame(steps)
    places, ranks, users = frame["position"], _places(frame), frame["user"].nunique()
    apart = places - places.mean()
    if not (spread := float((apart**2).sum())):
        return Estimate("position slope", float("nan"), float("nan"), users)
    slope = float((apart * ranks).sum()) / spread
    shares = (apart * (ranks - ranks.mean() - slope * apart)).groupby(frame["user"]).sum()
    se = float((shares**2).sum()) ** 0.5 / spread
    return Estimate("position slope", slope, se if users > 1 else float("nan"), users)


def _places(frame: DataFrame) -> DataFrame:
    # Ranks, where a target that isn't ranked counts as last.
    return frame["rank"].fillna(frame["n_candidates"])


def invalid_answers(steps: Sequence[Step]) -> dict[str, float]:
    """Share of answers with each type of problem ("missing", "invented", ...), and of those with any ("invalid")."""
    problems: Counter[str] = Counter()
    for step in steps:
        problems.update(problem.replace("_", " ") for problem in step.ranking.report.kinds)
        problems["invalid"] += not step.ranking.valid
    return {problem: count / max(1, len(steps)) for problem, count in sorted(problems.items())}


def popularity(histories: Iterable[Iterable[Id]]) -> Counter[Id]:
    """Number of users who interacted with each item, from one history a user."""
    return Counter(item for history in histories for item in set(history))


def popularity_bias(steps: Sequence[Step], counts: Mapping[Id, int]) -> Estimate:
    """How much more popular the first five are than the candidates: mean percentile minus 0.5.

    0 is no bias, 0.5 the most there could be. A candidate's percentile is taken among those of its own list.
    """
    from scipy.stats import rankdata

    values = []
    for step in steps:
        shown = np.array([counts.get(item, 0) for item in step.candidates], dtype=np.float64)
        below = rankdata(shown) - 1
        top = list(step.ranking.order[:TOP])
        values.append(float((below[top] / (len(shown) - 1)).mean()) - 0.5 if top and len(shown) > 1 else np.nan)
    return estimate("popularity bias", values, [step.user_id for step in steps])


def novelty(steps: Sequence[Step], counts: Mapping[Id, int], users: int) -> Estimate:
    """Mean self-information of the first five, `-log2(share of users who interacted with the item)`.

    After Zhou et al. 2010 ("Solving the apparent diversity-accuracy dilemma of recommender systems"); shares are of
    `users` + 1, with one added to each count, so that an item new to all has a finite one.
    """
    values = [
        float(np.mean([-log2((counts.get(item, 0) + 1) / (users + 1)) for item in top]))
        if (top := _top(step))
        else np.nan
        for step in steps
    ]
    return estimate("novelty", values, [step.user_id for step in steps])


def diversity(steps: Sequence[Step], attributes: Mapping[Id, frozenset[str]]) -> Estimate:
    """Intra-list diversity of the first five: mean of 1 - Jaccard of their attributes, over pairs.

    After Ziegler et al. 2005 ("Improving recommendation lists through topic diversification"). Items without
    attributes are left out.
    """
    values = []
    for step in steps:
        known = [attributes[item] for item in _top(step) if attributes.get(item)]
        apart = [1 - len(a & b) / len(a | b) for a, b in combinations(known, 2)]
        values.append(float(np.mean(apart)) if apart else np.nan)
    return estimate("diversity", values, [step.user_id for step in steps])


def attribute_words(attributes: Mapping[str, str]) -> frozenset[str]:
    """An item's attribute values in lower case, lists such as "Action|Comedy" or "Pop, Rock" apart; no years."""
    values = (part.strip().casefold() for value in attributes.values() for part in re.split(r"[|/,;>]", value))
    return frozenset(value for value in values if value and not value.isdecimal() and not value.startswith("("))


@dataclass(frozen=True)
class Calibration:
    """Predicted likes (4.1.3) against actual ones."""

    hits: int
    """Predicted liked, and liked."""
    false_alarms: int
    """Predicted liked, but disliked."""
    misses: int
    """Predicted disliked, but liked."""
    rejections: int
    """Predicted disliked, and disliked."""
    by_rank: tuple[Estimate, ...]
    """Share of targets that were liked, by where they were ranked; groups without targets are left out."""


def calibration(steps: Iterable[Step]) -> Calibration:
    """Whether what is ranked higher is liked more; says something only of runs with `targets="all"`."""
    frame = step_frame(steps).sort_values("rank", kind="stable")
    frame["place"] = np.select([frame["rank"] <= last for last in (1, 5, 10)], ["1", "2-5", "6-10"], "11-")
    frame.loc[frame["rank"].isna(), "place"] = "not ranked"
    pairs = Counter(zip(frame["predicted_liked"], frame["liked"], strict=True))
    by_rank = tuple(estimates(frame, "place", "liked"))
    return Calibration(pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False], by_rank)


@dataclass(frozen=True)
class Cost:
    """A run's mean cost a user."""

    users: int
    prompt_tokens: float
    completion_tokens: float
    seconds: float
    """Latency of the calls, one after the other."""
    money: float
    """In the unit of the prices."""


def cost(steps: Sequence[Step], price_in: float = 0.0, price_out: float = 0.0, training: Sequence[Call] = ()) -> Cost:
    """Tokens, seconds and money a user.

    Args:
        steps: A run's.
        price_in: Of a million prompt tokens.
        price_out: Of a million completion tokens.
        training: Calls made for all the users before their first step.
    """
    users = max(1, len({step.user_id for step in steps}))
    calls = [*training, *(call for step in steps for call in step.calls)]
    prompt = sum(call.usage.prompt_tokens for call in calls) / users
    completion = sum(call.usage.completion_tokens for call in calls) / users
    seconds = sum(call.latency for call in calls) / users
    return Cost(users, prompt, completion, seconds, (prompt * price_in + completion * price_out) / 1e6)


def _top(step: Step) -> list[Id]:
    return [step.candidates[position] for position in step.ranking.order[:TOP]]

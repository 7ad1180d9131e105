"""The classical rankers, a small file each, and their names on the command line."""

from collections.abc import Callable, Iterable

from starec_env.cases import Batch
from starec_env.errors import unknown
from starec_eval.baselines.bpr import BPR
from starec_eval.baselines.ease import EASE
from starec_eval.baselines.ensemble import Ensemble
from starec_eval.baselines.gru4rec import GRU4Rec
from starec_eval.baselines.item_knn import ItemKNN
from starec_eval.baselines.markov import Markov
from starec_eval.baselines.next_id import NextId
from starec_eval.baselines.pop import Pop
from starec_eval.baselines.random import Random
from starec_eval.baselines.sasrec import SASRec
from starec_eval.baselines.scorer import Scorer

BASELINES: dict[str, Callable[..., Scorer]] = {
    "random": Random,
    "next-id": NextId,
    "pop": Pop,
    "item-knn": ItemKNN,
    "markov": Markov,
    "ease": EASE,
    "bpr": BPR,
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
}
"""Scorers by name; "random" and "next-id" are controls, which learn nothing."""


def build(names: Iterable[str], seed: int = 0) -> list[Scorer]:
    """Scorers from names; "-full" after a name trains it on all users instead of the sampled ones.

    "ensemble" averages the others that are named and learn, or all that learn if none is; "ensemble-full" likewise
    those trained on all users.

    Raises:
        UnknownName: With the nearest name that exists.
    """
    made: dict[str, Scorer] = {}
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        base = name.removesuffix("-full")
        if base not in BASELINES and base != "ensemble":
            raise unknown("method", name, [*BASELINES, "ensemble"])
        if base != "ensemble":
            made[name] = _one(name, seed)
    for name in wanted:
        base, full = name.removesuffix("-full"), name.removeprefix("ensemble")
        if base == "ensemble":
            learners = [f"{learner}{full}" for learner in BASELINES if learner not in ("random", "next-id", "pop")]
            members = [made[learner] for learner in learners if learner in made]
            members = members or [_one(learner, seed) for learner in learners]
            made[name] = Ensemble(members, train="full" if full else "sample", seed=seed)
    return [made[name] for name in wanted]


def _one(name: str, seed: int) -> Scorer:
    if name.endswith("-full"):
        return BASELINES[name.removesuffix("-full")](train="full", seed=seed)
    return BASELINES[name](seed=seed)


__all__ = [
    "BASELINES",
    "BPR",
    "EASE",
    "Batch",
    "Ensemble",
    "GRU4Rec",
    "ItemKNN",
    "Markov",
    "NextId",
    "Pop",
    "Random",
    "SASRec",
    "Scorer",
    "build",
]

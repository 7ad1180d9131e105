"""Harder negatives: what they are, that nothing leaks, and that an easy share leaves the stream alone."""

import numpy as np
import pytest

from starec_env.errors import InvalidOption, UnknownName
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id
from starec_training.features import Evidence
from starec_training.negatives import KINDS, HarderTurns


@pytest.fixture(scope="module")
def stream(films: Dataset) -> Stream:
    return Stream(films, n_candidates=9, split="train", seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_negatives_is_drawn_anew_and_the_rest_stays(
    films: Dataset, stream: Stream, evidence: Evidence, kind: str
) -> None:
    harder = HarderTurns(stream, evidence, kind, 0.5)
    assert list(harder.users) == list(stream.users)
    changed = []
    for user in stream.users.tolist():
        met = set(films.item_indices[films.indptr[user] : films.indptr[user + 1]].tolist())
        for turn, easy in zip(harder.turns(user), stream.turns(user), strict=True):
            shown, before = turn.query.candidates.indices.tolist(), easy.query.candidates.indices.tolist()
            assert (turn.target, turn.number, turn.query.history) == (easy.target, easy.number, easy.query.history)
            assert len(set(shown)) == 9
            assert met & set(shown) == {turn.target_item.id - 100} == {shown[turn.target]}
            changed.append(sum(a != b for a, b in zip(shown, before, strict=True)))
    assert max(changed) == 4
    again = HarderTurns(Stream(films, n_candidates=9, split="train", seed=3), evidence, kind, 0.5)
    last = int(stream.users[-1])  # asked alone, and first
    assert again.turns(last) == harder.turns(last)


def test_popular_negatives_are_more_popular_and_near_ones_nearer(stream: Stream, evidence: Evidence) -> None:
    def mean(kind: str, share: float) -> tuple[float, float]:
        popular, near = [], []
        for user in stream.users.tolist():
            for turn in HarderTurns(stream, evidence, kind, share).turns(user):
                shown = turn.query.candidates.indices
                negatives, target = np.delete(shown, turn.target)[None], shown[turn.target][None, None]
                popular += evidence.counts[negatives[0]].tolist()
                near += evidence.together(np.array([user]), negatives, target).ravel().tolist()
        return float(np.mean(popular)), float(np.mean(near))

    uniform = mean("popular", 0.0)
    assert mean("popular", 1.0)[0] > uniform[0] * 1.05
    assert mean("near", 1.0)[1] > uniform[1] * 1.3
    assert mean("near", 0.0) == uniform


def test_where_too_few_are_hard_the_easy_ones_stay(films: Dataset, evidence: Evidence, train_users: list[Id]) -> None:
    stream = Stream(films, n_candidates=26, split="train")  # 40 films, 14 of them met
    for user in stream.users[:4].tolist():
        for turn in HarderTurns(stream, evidence, "near", 1.0).turns(user):
            assert len(set(turn.query.candidates.indices.tolist())) == 26


def test_a_share_or_kind_out_of_range_is_refused(stream: Stream, evidence: Evidence) -> None:
    with pytest.raises(InvalidOption, match="hard=1.5"):
        HarderTurns(stream, evidence, "near", 1.5)
    with pytest.raises((InvalidOption, UnknownName), match="near"):
        HarderTurns(stream, evidence, "far", 0.5)

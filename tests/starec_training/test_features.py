"""Evidence: blind to each user's own stream, right in its counts, better than chance."""

from dataclasses import replace

import numpy as np
import pytest
from support import make_dataset

from starec_env.errors import TrainingError
from starec_env.metrics import ndcg
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id, Turn
from starec_training.features import FEATURES, PAD, Evidence


def clustered() -> Dataset:
    """30 users who each take films of one half of the catalogue alone."""
    data = make_dataset(n_users=30, n_items=60, length=14)
    rng = np.random.default_rng(1)
    rows = [rng.permutation(30)[:14] + 30 * (user % 2) for user in range(30)]
    return replace(data, item_indices=np.concatenate(rows).astype(np.int32), ratings=np.full(30 * 14, 5.0, np.float32))


def last_turns(dataset: Dataset, users: list[Id]) -> list[Turn]:
    stream = Stream(dataset, turns=1)
    able = set(stream.users.tolist())
    return [stream.turns(u)[-1] for u in map(dataset.user_index, users) if u in able]


def test_a_training_user_is_judged_as_if_never_counted(films: Dataset, train_users: list[Id]) -> None:
    with_all = Evidence(films, train_users)
    for turn in last_turns(films, train_users[:5]):
        without = Evidence(films, [user for user in train_users if user != turn.query.user.id])
        query = turn.query
        np.testing.assert_allclose(
            with_all.features(with_all.batch([query])), without.features(without.batch([query])), rtol=1e-12
        )


def test_counts_are_those_of_the_other_training_users(films: Dataset, train_users: list[Id]) -> None:
    evidence = Evidence(films, train_users)
    streams = {u: set(films.item_indices[films.indptr[u] : films.indptr[u + 1]].tolist()) for u in evidence.trained}
    me = int(evidence.trained[3])
    a, b = np.array([list(range(20))]), np.array([list(range(20, 40))])
    counts = evidence.together(np.array([me]), a, b)[0]
    for i, j in np.ndindex(20, 20):
        others = sum(i in items and 20 + j in items for user, items in streams.items() if user != me)
        assert counts[i, j] == others
    near, often = evidence.neighbours(me, 7)
    assert all(count > 1 for count in often)
    assert dict(zip(near.tolist(), often.tolist(), strict=True)) == {
        item: count
        for item in range(films.n_items)
        if item != 7 and (count := sum(7 in s and item in s for user, s in streams.items() if user != me)) > 1
    }


def test_evidence_finds_what_users_share_and_noise_teaches_nothing() -> None:
    data = clustered()
    users = data.user_ids.tolist()
    evidence, rank = Evidence(data, users[:20]), {}
    for name, who in (("taught", users[:20]), ("strangers", users[20:])):
        turns = last_turns(data, who)
        rank[name] = np.mean([ndcg(evidence.rank(turn.query).rank_of(turn.target), 10) for turn in turns])
    chance = np.mean([ndcg(place, 10) for place in range(1, 21)])
    assert rank["taught"] > chance + 0.1
    assert rank["strangers"] > chance + 0.1
    assert dict(zip(FEATURES, evidence.weights, strict=True))["taken together"] > 0


def test_a_ranking_by_some_features_has_no_weight_for_the_others_and_leaves_the_first_alone() -> None:
    data = clustered()
    evidence = Evidence(data, data.user_ids.tolist()[:20])
    before = evidence.weights.copy()
    content = evidence.only(FEATURES[2:])
    assert (content.weights[:2] == 0).all() and (content.weights[2:] != 0).any()
    np.testing.assert_array_equal(evidence.weights, before)
    np.testing.assert_allclose(evidence.only(FEATURES).weights, before)


def test_a_ranking_holds_every_candidate_once(films: Dataset, evidence: Evidence) -> None:
    for turn in last_turns(films, films.user_ids.tolist()):
        assert sorted(evidence.rank(turn.query).order) == list(range(20))


def test_an_unknown_history_and_a_catalogue_without_kinds_do_no_harm() -> None:
    data = make_dataset(n_users=20)
    bare = replace(data, items=tuple(replace(item, attributes={}, title="?") for item in data.items))
    evidence = Evidence(bare, bare.user_ids.tolist())
    stream = Stream(bare, min_history=0)
    turn = next(turn for user in stream.users.tolist() for turn in stream.turns(user) if not len(turn.query.history))
    batch = evidence.batch([turn.query])
    assert batch.history.tolist() == [[PAD]]
    assert np.isfinite(evidence.scores(batch)).all()


def test_somebody_to_learn_from_is_needed(films: Dataset) -> None:
    with pytest.raises(TrainingError, match="training users"):
        Evidence(films, [])

"""Turns, negatives and the judge."""

import subprocess
import sys
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from support import make_dataset

from starec_env.errors import InvalidOption, UnknownName
from starec_env.replay.stream import Negatives, Seen, Stream, judge, sample_negatives
from starec_env.types import Dataset, Ranking


def windowed() -> Dataset:
    """A data set whose users have 4 rows before their windows, but for one whose window is empty."""
    dataset = make_dataset(n_users=12, n_items=60, length=18)
    window = dataset.indptr[:-1] + 4
    window[3] = dataset.indptr[4]
    return replace(dataset, window=window)


def met(dataset: Dataset, user: int) -> set[int]:
    return set(dataset.item_indices[dataset.indptr[user] : dataset.indptr[user + 1]].tolist())


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations a chi-square statistic against uniform lies above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("table_bytes", [2**28, 64])
def test_negatives_are_never_met_and_never_repeat(table_bytes: int) -> None:
    dataset = windowed()
    users, turns = np.repeat(np.arange(12), 50), np.tile(np.arange(50), 12)
    drawn = sample_negatives(1, users, turns, 19, Seen(dataset, table_bytes))
    for user, row in zip(users, drawn.tolist(), strict=True):
        assert len(set(row)) == 19
        assert not set(row) & met(dataset, user)


def test_the_small_table_and_the_full_one_give_the_same_negatives() -> None:
    dataset = make_dataset(n_users=30, n_items=300, length=100)
    users = np.repeat(np.arange(30), 20)
    small, full = (sample_negatives(5, users, users, 19, Seen(dataset, size)) for size in (2**10, 2**28))
    assert np.array_equal(small, full)


def test_a_row_is_a_function_of_seed_user_and_turn_alone() -> None:
    dataset = windowed()
    seen = Seen(dataset)
    users, turns = np.repeat(np.arange(12), 9), np.tile(np.arange(9), 12)
    together = sample_negatives(7, users, turns, 19, seen)
    order = np.random.default_rng(0).permutation(len(users))
    assert np.array_equal(sample_negatives(7, users[order], turns[order], 19, seen), together[order])
    for row in (0, 40, 107):
        assert np.array_equal(sample_negatives(7, users[[row]], turns[[row]], 19, seen)[0], together[row])
    for other in (sample_negatives(8, users, turns, 19, seen), sample_negatives(7, users, turns + 1, 19, seen)):
        assert (other != together).any(axis=1).all()


def test_fewer_negatives_are_the_first_of_more() -> None:
    seen, users = Seen(make_dataset()), np.arange(12)
    assert np.array_equal(
        sample_negatives(0, users, users, 5, seen), sample_negatives(0, users, users, 19, seen)[:, :5]
    )


@pytest.mark.parametrize("varied", ["turns", "seeds"])
def test_negatives_are_uniform_over_the_items_never_met(varied: str) -> None:
    dataset = make_dataset()
    seen, one = Seen(dataset), np.zeros(1, np.int64)
    if varied == "turns":
        drawn = sample_negatives(0, np.zeros(20_000, np.int64), np.arange(20_000), 5, seen)
    else:
        drawn = np.concatenate([sample_negatives(seed, one, one, 5, seen) for seed in range(2_000)])
    unseen = np.setdiff1d(np.arange(60), list(met(dataset, 0)))
    assert abs(chi_square(np.array([(drawn == item).sum() for item in unseen]))) < 4


def test_two_negatives_of_a_row_are_independent_but_for_being_distinct() -> None:
    dataset = make_dataset()
    drawn = sample_negatives(0, np.zeros(40_000, np.int64), np.arange(40_000), 19, Seen(dataset))
    rank = np.zeros(60, np.int64)
    unseen = np.setdiff1d(np.arange(60), list(met(dataset, 0)))
    rank[unseen] = np.arange(len(unseen))
    for a, b in ((0, 1), (0, 18), (7, 8)):
        pairs = np.bincount(rank[drawn[:, a]] * len(unseen) + rank[drawn[:, b]], minlength=len(unseen) ** 2)
        assert abs(chi_square(pairs.reshape(46, 46)[~np.eye(46, dtype=bool)])) < 4


def test_the_true_items_place_is_uniform_and_the_true_item_stands_there() -> None:
    dataset = make_dataset(n_users=3000, n_items=60, length=12)
    stream = Stream(dataset, targets="all", min_history=0)
    turns = [turn for turns in stream.turns_of(stream.users) for turn in turns]
    assert abs(chi_square(np.bincount([turn.target for turn in turns], minlength=20))) < 4
    assert [turn.query.candidates.indices[turn.target] for turn in turns] == dataset.item_indices.tolist()


def test_a_user_who_met_nearly_all_gets_exactly_what_is_left() -> None:
    dataset = make_dataset(n_users=2, n_items=500, length=481)
    drawn = sample_negatives(0, np.array([1, 1]), np.array([0, 1]), 19, Seen(dataset))
    left = set(range(500)) - met(dataset, 1)
    assert set(drawn[0].tolist()) == set(drawn[1].tolist()) == left
    assert drawn[0].tolist() != drawn[1].tolist()


def test_a_user_with_too_few_unseen_items_is_named_with_the_way_out() -> None:
    dataset = make_dataset(n_users=2, n_items=30, length=14)
    with pytest.raises(InvalidOption, match=r"none of the 2 users .* 19 of the 30 items.* lower n_candidates to 17"):
        Stream(dataset)
    assert Stream(dataset, n_candidates=17).turns(0)
    with pytest.raises(InvalidOption, match="user 2 leaves only 16 of the 30 items.* lower n_candidates to 17"):
        sample_negatives(0, np.array([1]), np.array([0]), 17, Seen(dataset))


def dense() -> Dataset:
    """12 users of 14 of 60 items each, but for user 3, who met 50 of them, 30 of them before the window."""
    lengths = np.full(12, 14)
    lengths[2] = 50
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(60)[:length] for length in lengths]).astype(np.int32)
    indptr = np.append(0, lengths.cumsum())
    return replace(
        make_dataset(),
        indptr=indptr,
        window=np.maximum(indptr[:-1], indptr[1:] - 20),
        item_indices=rows,
        ratings=np.full(len(rows), 5, np.float32),
        timestamps=np.arange(len(rows)),
    )


def test_a_user_who_met_nearly_all_is_left_out_with_a_note_and_stops_nobody_else() -> None:
    stream = Stream(dense())
    assert stream.users.tolist() == [user for user in range(12) if user != 2]
    (note,) = stream.notes
    assert note.startswith("1 of 12 users are left out, as fewer than 19 of the 60 items are left as their negatives")
    assert note.endswith("(user 3: 10): lower n_candidates to 11 or less to ask more of them")
    assert stream.turns(2) == [] and len(stream.turns(1)) == 9
    assert Stream(make_dataset()).notes == ()


def test_such_a_user_is_refused_when_named_and_no_other() -> None:
    stream = Stream(dense())
    stream.require(stream.users)
    with pytest.raises(InvalidOption, match="user 3 leaves only 10 of the 60 items .* lower n_candidates to 11"):
        stream.require(np.array([1, 2]))
    with pytest.raises(InvalidOption, match="user 1 has no turn .* lower min_history"):
        Stream(replace(dense(), ratings=np.append(np.ones(14), np.full(190, 5)).astype(np.float32))).require(
            np.array([0])
        )


def test_the_check_looks_at_what_the_setting_excludes() -> None:
    assert 2 in Stream(dense(), negatives="truncated").users
    everything = make_dataset(n_users=5, n_items=25, length=25)
    with pytest.raises(InvalidOption, match="nobody is left to ask"):
        Stream(everything, negatives="truncated")
    assert len(Stream(everything, negatives="target", targets="all").turns(0)) == 20
    with pytest.raises(
        InvalidOption, match="19 of the 19 items left as negatives, 18 at most: lower n_candidates to 19"
    ):
        Stream(make_dataset(n_users=5, n_items=19, length=10), negatives="target")


@pytest.mark.parametrize("negatives", ["history", "truncated", "target"])
def test_negatives_exclude_what_the_option_says(negatives: Negatives) -> None:
    dataset = windowed()
    stream = Stream(dataset, negatives=negatives, targets="all")
    before, within = 0, 0
    for user in stream.users.tolist():
        first, start = int(dataset.indptr[user]), int(dataset.starts[user])
        earlier, window = set(dataset.item_indices[first:start].tolist()), met(dataset, user)
        window -= earlier
        for turn in stream.turns(user):
            others = set(turn.query.candidates.indices.tolist()) - {
                int(turn.query.candidates.indices[turn.target]),
            }
            assert len(others) == 19
            before, within = before + len(others & earlier), within + len(others & window)
    assert (before > 0) == (negatives != "history")
    assert (within > 0) == (negatives == "target")


def test_the_candidates_of_a_seed_never_change_between_versions() -> None:
    stream = Stream(make_dataset(), seed=2**70)
    shown = [turn.query.candidates.indices for user in stream.users for turn in stream.turns(int(user))]
    assert blake2b(np.concatenate(shown).astype("<i4").tobytes(), digest_size=8).hexdigest() == "0bf29f0e62a89e3e"


def test_another_process_sees_the_same_turns() -> None:
    code = (
        "from support import make_dataset; from starec_env.replay.stream import Stream\n"
        "s = Stream(make_dataset(), seed=4)\n"
        "print([(t.query.candidates.indices.tolist(), t.target) for t in s.turns(5)])"
    )
    tests = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True)
    here = Stream(make_dataset(), seed=4).turns(5)
    assert done.stdout.strip() == str([(turn.query.candidates.indices.tolist(), turn.target) for turn in here])


@pytest.mark.parametrize("dataset", [make_dataset(), windowed()], ids=["whole", "windowed"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("targets", ["liked", "all"])
@pytest.mark.parametrize("last", [None, 1, 3])
@pytest.mark.parametrize("min_history", [0, 5])
def test_turns_are_what_the_definition_says(
    dataset: Dataset, split: str, targets: str, last: int | None, min_history: int
) -> None:
    stream = Stream(dataset, split=split, targets=targets, turns=last, min_history=min_history)
    for user in range(dataset.n_users):
        first, stop = int(dataset.starts[user]), int(dataset.indptr[user + 1])
        rows = [row for row in range(first + min_history, stop) if targets == "all" or dataset.ratings[row] > 3]
        numbered = list(enumerate(rows))
        if split == "train":
            likes = [row for row in rows if dataset.ratings[row] > 3]
            numbered = [(number, row) for number, row in numbered if row < (likes or rows)[-1]]
        expected = numbered[-last:] if last else numbered
        turns = stream.turns(user)
        assert (user in stream.users) == bool(expected)
        assert [turn.number for turn in turns] == [number for number, _ in expected]
        assert [turn.target_item for turn in turns] == [dataset.items[dataset.item_indices[row]] for _, row in expected]
        assert [turn.liked for turn in turns] == [bool(dataset.ratings[row] > 3) for _, row in expected]
        for turn, (_, row) in zip(turns, expected, strict=True):
            assert list(turn.query.history) == [dataset.interaction(user, past) for past in range(first, row)]
            assert turn.query.user.id == dataset.user_ids[user]
            others = set(turn.query.candidates.indices.tolist()) - {int(dataset.item_indices[row])}
            assert len(others) == 19
            assert not others & met(dataset, user)


def test_train_never_shows_the_held_out_item() -> None:
    dataset = make_dataset()
    test, train = Stream(dataset), Stream(dataset, split="train")
    for user in train.users.tolist():
        held_out = test.turns(user)[-1].target_item
        assert test.turns(user)[:-1] == train.turns(user)
        for turn in train.turns(user):
            assert held_out not in list(turn.query.candidates)
            assert held_out not in turn.query.history.items


def test_options_that_only_choose_turns_leave_their_candidates_alone() -> None:
    dataset = make_dataset()
    whole = {turn.number: turn for turn in Stream(dataset).turns(2)}
    assert all(whole[turn.number] == turn for turn in Stream(dataset, turns=2).turns(2))


def test_turns_of_many_users_are_the_turns_of_each() -> None:
    stream = Stream(make_dataset())
    users = np.array([4, 1, 4, 9])
    assert stream.turns_of(users) == [stream.turns(user) for user in users.tolist()]


def test_padded_histories_hold_the_last_interactions() -> None:
    dataset = windowed()
    stream = Stream(dataset)
    start = int(dataset.starts[0])
    items, liked = stream.histories(np.array([0, 0, 0]), np.array([start, start + 2, start + 7]), 4)
    rows = dataset.item_indices[start : start + 7].tolist()
    assert items.tolist() == [[-1] * 4, [*rows[:2], -1, -1], rows[3:7]]
    assert liked[2].tolist() == [int(rating > 3) for rating in dataset.ratings[start + 3 : start + 7]]
    assert liked[1].tolist()[2:] == [-1, -1]


def test_the_judge_rewards_ranks_and_says_whether_the_prediction_agrees() -> None:
    turn = Stream(make_dataset()).turns(0)[0]
    others = [position for position in range(20) if position != turn.target]
    for rank, reward, predicted in ((1, 1.0, True), (5, 0.5, True), (6, 0.0, False), (20, -0.5, False)):
        feedback, earned = judge(turn, Ranking(order=(*others[: rank - 1], turn.target, *others[rank - 1 :])))
        assert (feedback.rank, earned, feedback.predicted_liked) == (rank, reward, predicted)
        assert feedback.item_id == turn.target_item.id
        assert feedback.agrees == predicted
    feedback, earned = judge(turn, Ranking(order=tuple(others)))
    assert (feedback.rank, earned, feedback.predicted_liked, feedback.liked) == (None, -1.0, False, True)
    assert judge(turn, Ranking(order=(turn.target,)), reward=lambda rank: 10.0 * (rank or 0))[1] == 10.0


def test_a_disliked_target_earns_nothing_wherever_it_was_ranked() -> None:
    turn = next(turn for turn in Stream(make_dataset(), targets="all").turns(0) if not turn.liked)
    for order in ((turn.target,), ()):
        feedback, earned = judge(turn, Ranking(order=order))
        assert (earned, feedback.liked) == (0.0, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "did you mean 'test'"),
        ({"targets": "like"}, "did you mean 'liked'"),
        ({"n_candidates": 1}, "n_candidates is 1"),
        ({"turns": 0}, "turns is 0"),
        ({"min_history": -1}, "min_history is -1"),
        ({"min_history": 14}, "no user .* has a turn"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Stream(make_dataset(), **options)  # type: ignore[arg-type]


def test_an_unknown_user_is_refused_with_the_range_of_the_ids() -> None:
    with pytest.raises(UnknownName, match="numbers from 1 to 12"):
        make_dataset().user_index(121)

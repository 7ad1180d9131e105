"""What a ranker is shown, as values: equality, pickles, copies, and events that a history gains."""

import pickle
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_dataset, shared_data

from starec_env import load_dataset, prepare
from starec_env.errors import InvalidOption
from starec_env.replay.stream import Stream
from starec_env.types import Candidates, Dataset, History, Item, Query


def queries(dataset: Dataset, n: int = 8) -> list[Query]:
    stream = Stream(dataset)
    return [turn.query for turns in stream.turns_of(stream.users[:n]) for turn in turns]


def test_a_query_is_equal_after_pickling_both_ways_and_hashes_alike(tiny_dataset: Dataset) -> None:
    asked = queries(tiny_dataset)
    for query in asked:
        packed = pickle.loads(pickle.dumps(query))
        again = pickle.loads(pickle.dumps(packed))
        assert query == packed == again == query
        assert len({query, packed, again}) == 1
        assert list(packed.history) == list(query.history)
        assert list(packed.candidates) == list(query.candidates)
        assert packed.history.items == query.history.items
        for column in ("item_indices", "ratings", "liked", "timestamps"):
            mine, theirs = getattr(packed.history, column), getattr(query.history, column)
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
            with pytest.raises(ValueError, match="read-only"):
                mine[:] = 0
    assert len(set(asked)) == len(asked)


def test_queries_that_differ_in_anything_are_unequal(tiny_dataset: Dataset) -> None:
    query = queries(tiny_dataset)[1]
    packed = pickle.loads(pickle.dumps(query))
    ratings, times = tiny_dataset.ratings.copy(), tiny_dataset.timestamps.copy()
    ratings[0] = 6 - ratings[0] if ratings[0] != 3 else 4
    times[0] -= 1
    titled = [replace(item, title=f"{item.title}!") for item in tiny_dataset.items]
    for change in ({"ratings": ratings}, {"timestamps": times}, {"items": titled}):
        other = queries(replace(tiny_dataset, **change))[1]
        assert other.history != query.history
        assert other.history != packed.history
    assert Candidates(titled, query.candidates.indices) != query.candidates
    assert Candidates(tiny_dataset.items, query.candidates.indices[::-1]) != packed.candidates
    assert query.history != list(query.history)
    assert query.candidates != list(query.candidates)


def test_a_pickle_holds_what_is_shown_and_not_the_data_set() -> None:
    query = queries(make_dataset(n_users=300, n_items=3000))[0]
    packed = pickle.dumps(query)
    assert len(packed) < 2500
    assert b"Dataset" not in packed


@pytest.mark.parametrize("folder", ["ml-1m", "amazon-cds/r3"])
def test_a_query_of_real_data_pickles_in_four_kib(folder: str) -> None:
    path = shared_data(*Path(folder).parts)
    least = 10 if folder == "ml-1m" else 1
    dataset = prepare(load_dataset("ml-1m" if folder == "ml-1m" else "amazon", path), min_interactions=least)
    sizes = [len(pickle.dumps(query)) for query in queries(dataset, 300)]
    assert max(sizes) < 4000


def test_an_unprepared_history_takes_bytes_by_the_interaction() -> None:
    dataset = load_dataset("ml-latest-small")
    longest = max((turns[-1].query for turns in map(Stream(dataset).turns, range(40))), key=lambda q: len(q.history))
    assert len(longest.history) > 200
    assert len(pickle.dumps(longest)) < 50 * (len(longest.history) + 20)


def test_copies_are_the_thing_itself_as_it_never_changes(tiny_dataset: Dataset) -> None:
    query = queries(tiny_dataset)[0]
    assert deepcopy(query.history) is copy(query.history) is query.history
    assert deepcopy(query.candidates) is copy(query.candidates) is query.candidates
    assert deepcopy(query) == query
    with pytest.raises(ValueError, match="read-only"):
        query.candidates.indices[:] = 0
    mine = np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match="read-only"):
        Candidates(tiny_dataset.items, mine).indices[:] = 0
    mine[:] = 1  # the caller's own array stays the caller's


def test_they_print_what_they_hold(tiny_dataset: Dataset) -> None:
    query = queries(tiny_dataset)[0]
    taste = "liked" if query.history[-1].liked else "disliked"
    last = query.history.items[-1].title
    assert repr(query.history) == f"History({len(query.history)} interactions, the last {taste} {last!r})"
    assert repr(History(tiny_dataset, 0, 3, 3)) == "History(no interactions)"
    titles = ", ".join(repr(item.title) for item in query.candidates[:3])
    assert repr(query.candidates) == f"Candidates(20 items: {titles}, ...)"
    assert repr(Candidates([Item(1, "A")], np.zeros(1, np.int32))) == "Candidates(1 items: 'A')"


@given(st.integers(0, 14), st.integers(0, 14), st.booleans())
@settings(deadline=None, max_examples=40)
def test_an_extended_history_is_the_history_that_had_it_from_the_start(cut: int, stop: int, pickled: bool) -> None:
    dataset = make_dataset()
    cut, stop = sorted((cut, stop))
    known, whole = History(dataset, 0, 0, cut), History(dataset, 0, 0, stop)
    more: dict[str, Any] = {
        name: getattr(whole, name)[cut:] for name in ("item_indices", "ratings", "liked", "timestamps")
    }
    grown = known.extended(**more)
    assert len(known) == cut
    assert grown == whole
    assert hash(grown) == hash(whole)
    assert list(grown) == list(whole)
    assert (pickle.loads(pickle.dumps(grown)) if pickled else grown.extended([], [], [], [])) == whole


def test_a_history_grows_by_columns_of_one_length(tiny_dataset: Dataset) -> None:
    with pytest.raises(InvalidOption, match="2 item_indices, 1 ratings"):
        History(tiny_dataset, 0, 0, 2).extended([1, 2], [3.0], [True, True], [0, 0])


def test_an_item_that_a_history_does_not_know_is_refused_when_it_is_extended(tiny_dataset: Dataset) -> None:
    known = History(tiny_dataset, 0, 0, 2)
    other = next(index for index in range(tiny_dataset.n_items) if index not in known.item_indices)
    assert len(known.extended([other], [5.0], [True], [0]).items) == 3
    for history, index in ((pickle.loads(pickle.dumps(known)), other), (known, tiny_dataset.n_items), (known, -1)):
        with pytest.raises(InvalidOption, match=f"item of index {index}"):
            history.extended([index], [5.0], [True], [0])


def test_arrays_of_an_unpickled_data_set_are_read_only(tiny_dataset: Dataset) -> None:
    assert tiny_dataset.liked is not None
    again = pickle.loads(pickle.dumps(tiny_dataset))
    assert again.hash == tiny_dataset.hash
    for name in ("ratings", "timestamps", "item_indices", "indptr", "user_ids", "liked"):
        assert not getattr(again, name).flags.writeable


def test_equal_candidates_have_equal_hashes_whatever_their_integers(tiny_dataset: Dataset) -> None:
    wide = Candidates(tiny_dataset.items, np.arange(5, dtype=np.int64))
    narrow = pickle.loads(pickle.dumps(wide))
    assert narrow == wide and hash(narrow) == hash(wide)

"""Tables in memory of each library give the same data set."""

import doctest
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import starec_env.data
from starec_env import from_frame
from starec_env.errors import DataError

TABLE = {
    "user_id": ["b", "a", "a", "b"],
    "item_id": [3, 1, 2, 1],
    "rating": [4.0, 2.5, 5.0, 1.0],
    "timestamp": [30, 20, 10, 40],
}
ITEMS = {"item_id": [1, 2, 3], "title": ["Up", "Alien", None], "year": ["2009", "1979", None], "n": [1, 2, 3]}
USERS = {"user_id": ["a", "b"], "age": ["25", None]}
KINDS = [dict, pd.DataFrame, pl.DataFrame, pa.table]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_every_library_give_the_same_data_set(kind: Any) -> None:
    dataset = from_frame(kind(TABLE), items=kind(ITEMS), users=kind(USERS), domain="movie")
    assert dataset.user_ids.tolist() == ["a", "b"]
    assert [dataset.items[i].id for i in dataset.item_indices] == [2, 1, 3, 1]
    assert dataset.ratings.tolist() == [5, 2.5, 4, 1]
    assert dataset.items[0].attributes == {"year": "2009", "n": "1"}
    assert dataset.items[2].title == "Untitled item 3"
    assert dataset.items[2].attributes == {"n": "3"}
    assert [dict(words) for words in dataset.demographics or ()] == [{"age": "25"}, {}]


@pytest.mark.parametrize("zone", [None, UTC, timezone(timedelta(hours=2))])
@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_datetimes_become_seconds(kind: Any, zone: tzinfo | None) -> None:
    times = [datetime(2001, 9, 9, 1, 46, 40 + second, tzinfo=zone) for second in range(4)]
    earlier = 7200 if zone not in (None, UTC) else 0
    dataset = from_frame(kind({**TABLE, "timestamp": times}))
    assert sorted((dataset.timestamps + earlier).tolist()) == [10**9 + second for second in range(4)]


def test_whole_numbers_held_as_floats_or_nullable_are_ids() -> None:
    for ids in ([1.0, 2.0, 3.0, 4.0], pd.array([1, 2, 3, 4], dtype="Int64")):
        assert from_frame(pd.DataFrame({**TABLE, "item_id": ids})).items[0].id == 1


def test_other_column_names_can_be_given() -> None:
    dataset = from_frame(
        pd.DataFrame({"who": [1], "what": ["x"], "stars": [3], "name": ["Up"]}),
        user="who",
        item="what",
        rating="stars",
        title="name",
    )
    assert (dataset.items[0].title, dataset.ratings.tolist()) == ("Up", [3])
    assert {"no column 'timestamp'", "no timestamps: the order of the rows is the time"} <= set(dataset.notes)


def test_without_ratings_all_is_liked_and_a_note_says_so() -> None:
    dataset = from_frame({"user_id": [1, 1], "item_id": [1, 2]})
    assert dataset.interaction(0, 0).liked
    assert {"no column 'rating'", "no ratings: every interaction counts as liked (rating 5)"} <= set(dataset.notes)
    assert "no column 'title' and no items=: no titles" in dataset.notes


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (pd.DataFrame({"user": [1]}), "no column 'user_id' and no 'item_id', but user"),
        (pd.DataFrame({**TABLE, "rating": [1, None, 2, 3]}), "'rating', row 1"),
        (pl.DataFrame({**TABLE, "timestamp": [1, 2, None, 3]}), "'timestamp', row 2"),
        (pa.table({**TABLE, "timestamp": pa.array([1, None, 3, 4], pa.timestamp("s"))}), "'timestamp', row 1"),
        (pl.DataFrame({**TABLE, "user_id": ["a", None, "b", "c"]}), "'user_id', row 1"),
        (pd.DataFrame({**TABLE, "item_id": [1, None, 2, 3]}), "'item_id', row 1: got"),
        (pd.DataFrame({**TABLE, "item_id": pd.array([1, None, 2, 3], dtype="Int64")}), "'item_id', row 1: got nan"),
        (
            pd.DataFrame({**TABLE, "timestamp": pd.to_datetime(["2001-01-01", None] * 2, utc=True)}),
            "'timestamp', row 1",
        ),
        (pd.DataFrame({**TABLE, "timestamp": [1, 1e30, 2, 3]}), "'timestamp', row 1"),
        (pd.DataFrame({**TABLE, "rating": list("abcd")}), "wanted numbers"),
        (pd.DataFrame({**TABLE, "timestamp": list("abcd")}), "'timestamp', row 0: got 'a'; wanted a time"),
        (pl.LazyFrame(TABLE), "collect"),
        ({"user_id": [1, 2], "item_id": [1]}, "differ in length"),
        ([1, 2], "got a list"),
        (
            pd.DataFrame({name: column[:0] for name, column in TABLE.items()}).astype({"user_id": int}),
            "no interactions",
        ),
    ],
)
def test_tables_that_cannot_be_read_are_errors_that_say_where(frame: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        from_frame(frame)


@pytest.mark.parametrize(
    "module", [starec_env.data, starec_env.data.frame, starec_env.data.build, starec_env.data.text]
)
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed

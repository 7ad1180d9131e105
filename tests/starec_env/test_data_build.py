"""What every loader ends with: order, ties, ids, scales and texts, whatever the format was."""

import html
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared_data

from starec_env import from_frame, load_dataset, prepare
from starec_env.data.build import Rows, add_item, build, clean_text
from starec_env.data.ids import id_column
from starec_env.data.ties import follows_ids
from starec_env.data.times import split_times, time_column
from starec_env.errors import DataError, InvalidOption, UnknownName
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id, Item

START = 1_588_687_728


def order(dataset: Dataset) -> list[Id]:
    return [dataset.items[index].id for index in dataset.item_indices]


def noted(dataset: Dataset, words: str) -> bool:
    return any(words in note for note in dataset.notes)


def objects(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    return np.fromiter(values, object, len(values))


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([START * 10**3 + 900, START * 10**3 + 100, START * 10**3 + 500], "milliseconds"),
        ([START * 10**6 + 900, START * 10**6 + 100, START * 10**6 + 500], "microseconds"),
        ([START * 10**9 + 900, START * 10**9 + 100, START * 10**9 + 500], "nanoseconds"),
        ([START + 0.9, START + 0.1, START + 0.5], "seconds"),
        ([f"{START}900", f"{START}100", f"{START}500"], "milliseconds"),
        ([f"{START}.9", f"{START}.1", f"{START}.5"], "seconds"),
        (["2020-05-05T14:08:48.9", "2020-05-05T14:08:48.1Z", "2020-05-05T16:08:48.5+02:00"], "datetimes"),
        (["2020-05-05 14:08:48.000000009", "2020-05-05 14:08:48", "2020-05-05 14:08:48.000000005"], "datetimes"),
        ([datetime(2020, 5, 5, 14, 8, 48, 10**5 * tenth, UTC) for tenth in (9, 1, 5)], "datetimes"),
        (np.array([900, 100, 500], "datetime64[us]") + np.timedelta64(START, "s"), "datetimes"),
    ],
)
def test_rows_are_in_order_of_time_at_the_resolution_given(times: Any, unit: str) -> None:
    dataset = from_frame({"user_id": [1, 1, 1], "item_id": ["c", "a", "b"], "timestamp": times})
    assert order(dataset) == ["a", "b", "c"]
    assert dataset.timestamps.tolist() == [START] * 3
    assert dataset.nanoseconds is not None and (np.diff(dataset.nanoseconds) > 0).all()
    assert split_times(time_column(np.asarray(times), "times"), "times").unit == unit
    assert not noted(dataset, "share user and time")


def test_whole_seconds_have_no_nanoseconds_and_text_that_is_a_number_is_never_a_year() -> None:
    dataset = from_frame({"user_id": [1], "item_id": [1], "timestamp": ["1112486027"]})
    assert dataset.timestamps.tolist() == [1_112_486_027] and dataset.nanoseconds is None


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-5))])
def test_the_zone_of_a_datetime_counts_and_without_one_it_is_universal_time(zone: timezone) -> None:
    moment = datetime(2001, 9, 9, 1, 46, 40, tzinfo=zone)
    dataset = from_frame({"user_id": [1], "item_id": [1], "timestamp": [moment]})
    assert dataset.timestamps[0] == moment.timestamp()
    naive = from_frame({"user_id": [1], "item_id": [1], "timestamp": [moment.replace(tzinfo=None)]})
    assert naive.timestamps[0] == 10**9


@pytest.mark.parametrize(
    ("times", "row"),
    [
        ([START, START + 1, START * 1000 + 2], 2),
        ([START * 1000, START * 1000 + 1, START + 2], 2),
        ([START * 10**6, START * 1000 + 1, START * 10**6 + 2], 1),
        ([START, "2020-05-05", START + 2], 1),
        ([START, None, START + 2], 1),
        ([START, float("nan"), START + 2], 1),
        ([START, "1_588_687_728", START + 2], 1),
        ([START, "１５８８６８７７２８", START + 2], 1),
        ([START, True, START + 2], 1),
        ([START, 2**70, START + 2], 1),
        ([START, 1 + 2j, START + 2], 1),
        (["2020-05-05", "noon", "2020-05-06"], 1),
    ],
)
def test_a_time_that_is_none_or_of_another_unit_is_refused_with_its_row(times: list[Any], row: int) -> None:
    with pytest.raises(DataError, match=f"'timestamp', row {row}: got"):
        from_frame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": times})


@pytest.mark.parametrize(
    "times", [np.array([2**63 + 5], np.uint64), np.array([1e25]), np.array(["2020", "NaT"], "M8[Y]")]
)
def test_times_beyond_every_unit_and_missing_dates_are_refused(times: Any) -> None:
    with pytest.raises(DataError, match="'timestamp'"):
        from_frame({"user_id": [1] * len(times), "item_id": list(range(len(times))), "timestamp": times})


def test_of_repeats_the_earliest_at_full_resolution_is_kept() -> None:
    dataset = from_frame({"user_id": [1, 1], "item_id": [7, 7], "rating": [1, 5], "timestamp": [9.75, 9.25]})
    assert dataset.ratings.tolist() == [5]
    assert noted(dataset, "1 repeated interaction with the same item dropped: the earliest is kept")
    tied = from_frame({"user_id": [1, 1], "item_id": [7, 7], "rating": [1, 5], "timestamp": [9, 9]})
    assert tied.ratings.tolist() == [1]


def sessions(ids: Sequence[Any], n_users: int = 6, times: Any = 100) -> dict[str, Any]:
    """A table in which each user meets all items at one time, in the order of `ids`."""
    return {
        "user_id": np.repeat(np.arange(n_users), len(ids)),
        "item_id": [*ids] * n_users,
        "timestamp": np.full(n_users * len(ids), times),
    }


@pytest.mark.parametrize(
    "ids",
    [
        list(range(10)),
        list(range(10, 0, -1)),
        [f"item {n}" for n in range(8, 16)],
        [str(n) for n in range(96, 106)],
        sorted(str(n) for n in range(96, 106)),
    ],
)
def test_ties_that_follow_item_ids_are_ordered_by_a_hash_and_the_file_s_order_can_be_had_again(ids: list[Any]) -> None:
    table = sessions(ids)
    dataset = from_frame(table)
    assert noted(dataset, f"{6 * (len(ids) - 1)} rows share user and time with the row before, 100%")
    assert noted(dataset, "by item id: a hash orders them, not the file")
    by_user = np.split(np.array(order(dataset), object), 6)
    assert all(sorted(map(str, part)) == sorted(map(str, ids)) for part in by_user)
    assert len({tuple(part) for part in by_user}) > 3  # each user has an order of their own
    assert dataset.file_order is not None and dataset.file_order.dtype == np.int32
    back = np.lexsort((dataset.file_order, dataset.timestamps, dataset.owner))
    assert [order(dataset)[row] for row in back] == table["item_id"]


def test_ties_in_an_order_of_their_own_keep_that_of_the_file() -> None:
    ids = [5, 1, 9, 2, 8, 3]
    dataset = from_frame(sessions(ids))
    assert order(dataset) == ids * 6
    assert dataset.file_order is None
    assert noted(dataset, "30 rows share user and time with the row before: file order decides")


def test_few_ties_keep_the_file_s_order() -> None:
    dataset = from_frame(sessions([1, 2, 3, 4], n_users=6))
    assert order(dataset) == [1, 2, 3, 4] * 6 and dataset.file_order is None


def test_only_rows_of_equal_time_move() -> None:
    table = sessions(range(10))
    table["timestamp"] = np.tile(np.repeat([100, 200], 5), 6)
    dataset = from_frame(table)
    for part in np.split(np.array(order(dataset)), 6):
        assert set(part[:5]) == set(range(5)) and set(part[5:]) == set(range(5, 10))
    assert dataset.timestamps.tolist() == table["timestamp"].tolist()


@settings(deadline=None)
@given(st.permutations(range(48)))
def test_the_order_by_hash_depends_on_no_other_row_and_on_no_place_in_the_file(rows: list[int]) -> None:
    table = {name: np.asarray(column) for name, column in sessions(range(8)).items()}
    whole, one = from_frame(table), 3
    text = from_frame({**table, "item_id": table["item_id"].astype(str), "user_id": table["user_id"].astype(str)})
    assert list(map(str, order(whole))) == order(text)
    # Users go and rows move, but as long as the rule applies the order stays.
    part = {name: column[np.sort(rows[:40])] for name, column in table.items()}
    left = from_frame(part)
    if left.file_order is not None and one in left.user_ids:
        mine = [item for item, user in zip(order(whole), whole.owner, strict=True) if user == one]
        user = left.user_index(one)
        kept = order(left)[left.indptr[user] : left.indptr[user + 1]]
        assert kept == [item for item in mine if item in kept]


def test_rows_without_times_that_follow_item_ids_are_ordered_by_a_hash_too() -> None:
    table = sessions(range(10))
    del table["timestamp"]
    dataset = from_frame(table)
    assert noted(dataset, "no timestamps, and of each user's neighbouring rows 100% ascend by item id")
    assert dataset.timestamps.tolist() == [0] * 60 and dataset.file_order is not None
    assert not noted(dataset, "the order of the rows is the time")
    shuffled = from_frame({"user_id": [1] * 30, "item_id": np.random.default_rng(1).permutation(30)})
    assert shuffled.timestamps.tolist() == list(range(30)) and shuffled.file_order is None


def test_the_rule_for_ties_needs_twenty_pairs_and_two_thirds() -> None:
    up, ids = np.arange(30, dtype=np.int32), list(range(31))
    assert follows_ids(up[:19], up[:19] + 1, ids) is None
    assert follows_ids(up[:20], up[:20] + 1, ids) == 1
    assert follows_ids(up + 1, up, ids) == 0
    half = np.where(up % 3 == 0, up + 1, up), np.where(up % 3 == 0, up, up + 1)
    assert follows_ids(*half, ids) is None  # two thirds are not more than two thirds


def test_ties_of_the_bundled_data_are_ordered_by_a_hash_and_those_of_ml_1m_by_their_file() -> None:
    small = load_dataset("ml-latest-small")
    assert noted(small, "21,845 rows share user and time with the row before, 100% ascend by item id")
    ids = np.array(order(small))
    tied = (np.diff(small.owner) == 0) & (np.diff(small.timestamps) == 0)
    assert 0.48 < np.mean(ids[1:][tied] > ids[:-1][tied]) < 0.52
    assert prepare(small).file_order is not None
    assert load_dataset("ml-1m", shared_data("ml-1m")).file_order is None


@pytest.mark.parametrize(
    "ids",
    [
        [2**63 + 5, 2**63 + 7, 1],
        [2**70, 2**70 + 1],
        [1e19, 2e19],
        [float(2**53), 1.0],
        np.array([1.0, 2.0**24 + 2], np.float32),
        np.array([2**63 + 5], np.uint64),
        [1.5, 2.0],
        [1, True],
        [1, None],
        [1, "a"],
        ["a", 1],
        ["a", ""],
        ["a\ud800", "b"],
        [float("nan")],
        [b"a"],
        [[1], [2]],
        [1 + 2j],
        np.ma.array([1, 2], mask=[False, True]),
        np.array([[1], [2]]),
        np.array(["2020"], "M8[Y]"),
    ],
)
def test_an_id_that_is_none_or_would_become_another_is_refused(ids: Any) -> None:
    with pytest.raises(DataError):
        from_frame({"user_id": ids, "item_id": list(range(len(ids)))})


@pytest.mark.parametrize(
    "ids",
    [
        [-5, -4, 2**63 - 1, -(2**63)],
        [0, 10**15],
        ["007", "7", "07"],
        ["1_0", "10", "２", "2"],
        ["a", "a ", "A", "a\0", "a\0\0"],
        [2**53 + 1, 2**53],
        [str(2**63 + 5), str(2**63 + 7)],
    ],
)
def test_ids_stay_what_they_are_and_apart(ids: list[Any]) -> None:
    dataset = from_frame({"user_id": ids, "item_id": ids})
    assert sorted(dataset.user_ids.tolist()) == sorted(item.id for item in dataset.items) == sorted(ids)
    for given_id in ids:
        assert dataset.user(dataset.user_index(given_id)).id == given_id
        assert dataset.items[dataset.item_index(given_id)].id == given_id


@pytest.mark.parametrize(
    "ids",
    [
        np.array(["x", "y"]),
        np.array([3, 4], np.uint8),
        objects([np.int64(3), np.int64(4)]),
        objects([np.str_("x"), np.str_("y")]),
        np.array([3.0, 4.0], np.float32),
        range(2),
    ],
)
def test_no_numpy_scalar_leaks_out(ids: Any) -> None:
    titles = np.array(["Up", "Heat"])
    items = {"item_id": ids, "title": titles, "year": np.array([2009, 1995]), "score": np.array([1.5, 2.5])}
    for side in (items, None):
        dataset = from_frame({"user_id": ids, "item_id": ids, "title": titles}, items=side)
        for item, user in zip(dataset.items, range(2), strict=True):
            interaction = dataset.interaction(user, user)
            values = [item.id, item.title, *item.attributes.values(), dataset.user(user).id, interaction.user_id]
            values += [interaction.item_id, interaction.rating, interaction.timestamp, interaction.liked]
            assert {type(value) for value in values} <= {int, str, float, bool}


@given(st.lists(st.one_of(st.integers(-(2**64), 2**64), st.text(max_size=3)), min_size=1, max_size=6, unique_by=str))
def test_a_column_of_ids_comes_back_as_it_was_or_is_refused(ids: list[Any]) -> None:
    try:
        found = id_column(objects(ids), "ids")
    except DataError:
        assert len({type(i) for i in ids}) > 1 or "" in ids or any(isinstance(i, int) for i in ids)
    else:
        assert list(found) == ids


@pytest.mark.parametrize(("taken", "side"), [([1, 2], ["1", "2"]), (["1", "2"], [1, 2]), ([1, 2], [1.0, 2.0])])
def test_side_tables_are_matched_as_number_and_as_text(taken: list[Any], side: list[Any]) -> None:
    dataset = from_frame(
        {"user_id": taken, "item_id": taken},
        items={"item_id": side, "title": ["Heat", "Alien"]},
        users={"user_id": side, "age": ["30", "40"]},
    )
    assert [(item.id, item.title) for item in dataset.items] == [(taken[0], "Heat"), (taken[1], "Alien")]
    assert [dict(words) for words in dataset.demographics or ()] == [{"age": "30"}, {"age": "40"}]
    assert noted(dataset, "the table of items has ids as") == (type(taken[0]) is str or type(side[0]) is str)


def test_where_a_side_table_has_an_id_as_number_and_as_text_each_is_itself() -> None:
    rows = Rows(np.array([1, 1]), np.array([7, 8]), None, np.array([1, 2]))
    dataset = build("both", "item", rows, {7: Item(7, "seven"), "7": Item("7", "text"), "8": Item("8", "eight")})
    assert [(item.id, item.title) for item in dataset.items] == [(7, "seven"), (8, "eight")]
    assert noted(dataset, "1 id of the table of items no whole number, left out: 7")
    assert order(dataset) == [7, 8]


@pytest.mark.parametrize("side", ["items", "users"])
def test_a_side_table_in_which_nothing_matches_is_refused_and_where_little_does_it_is_noted(side: str) -> None:
    table = {"user_id": [1, 2, 3], "item_id": [1, 2, 3]}
    key = f"{side[:-1]}_id"
    with pytest.raises(DataError, match=rf"none of the 3 {side} of the interactions .* is in the table of {side}"):
        from_frame(table, **{side: {key: ["001", "002"], "title": ["a", "b"]}})
    dataset = from_frame(table, **{side: {key: [3, 9], "title": ["a", "b"]}})
    assert noted(dataset, f"only 1 of the 3 {side} of the interactions are in the table of {side}")


def test_the_first_row_with_a_title_wins_everywhere_and_it_is_noted() -> None:
    items = {"item_id": [1, 1, 1, 2, 2], "title": [None, "Up", "Down", "Heat", ""], "n": [1, 2, 3, 4, 5]}
    dataset = from_frame({"user_id": [1, 1], "item_id": [1, 2]}, items=items)
    assert [(item.title, item.attributes) for item in dataset.items] == [("Up", {"n": "2"}), ("Heat", {"n": "4"})]
    assert noted(dataset, "rows of the table of items that repeat an id, the first with a title kept: 3")
    rows = {"user_id": [1, 2, 3, 1], "item_id": [1, 1, 1, 2], "title": [None, "Up", "Down", "Heat"]}
    dataset = from_frame(rows)
    assert [item.title for item in dataset.items] == ["Up", "Heat"]
    assert noted(dataset, "1 item with several titles in the rows: the first is kept")
    catalogue: dict[Id, Item] = {}
    assert [add_item(catalogue, Item(1, title)) for title in ("", "Up", "Down")] == [0, 1, 1]
    assert catalogue[1].title == "Up"
    users = {"user_id": [1, 1], "age": ["30", "40"]}
    dataset = from_frame({"user_id": [1], "item_id": [1]}, users=users)
    assert dataset.demographics == [{"age": "30"}]
    assert noted(dataset, "rows of the table of users that repeat an id, the first kept: 1")


def test_texts_with_half_characters_can_be_written_by_everyone_after() -> None:
    dataset = from_frame(
        {"user_id": [1], "item_id": [1]},
        items={"item_id": [1], "title": ["\ud83d Heat \ud83d\ude00"], "by\udfff": ["Mann\ud800"]},
        users={"user_id": [1], "job": ["\udfff"]},
    )
    assert dataset.items[0].title == "\ufffd Heat \U0001f600"
    assert dataset.items[0].attributes == {"by\ufffd": "Mann\ufffd"}
    assert dataset.demographics == [{"job": "\ufffd"}]
    assert noted(dataset, "1 item with half characters")


@pytest.mark.parametrize(
    ("ratings", "share", "advised"),
    [
        ([0, 1, 0, 1], "0%", "0.5"),
        ([1, 10, 7, 3], "50%", "6"),
        ([0, 100, 60, 70], "75%", "60"),
        ([-1, 1, 1, -1], "0%", "0"),
        ([4, 5, 4.5, 5], "100%", "4.5"),
        ([True, False, True, True], "0%", "0.5"),
    ],
)
def test_a_scale_that_the_default_does_not_fit_is_noted_with_what_would(
    ratings: list[Any], share: str, advised: str
) -> None:
    table = {"user_id": [1] * 4, "item_id": [1, 2, 3, 4], "rating": ratings}
    dataset = from_frame(table)
    assert noted(dataset, f"makes {share} of them likes; give e.g. liked_above={advised}")
    better = from_frame(table, liked_above=float(advised))
    assert 0 < better.liked.mean() < 1 and better.liked_above == float(advised)
    assert not noted(better, "liked_above")
    assert better.hash != dataset.hash


def test_a_usual_scale_needs_no_note_and_ratings_that_are_all_equal_do() -> None:
    table = {"user_id": [1] * 4, "item_id": [1, 2, 3, 4]}
    assert not noted(from_frame({**table, "rating": [1, 2, 5, 4]}), "rating")
    equal = from_frame({**table, "rating": [1] * 4})
    assert noted(equal, "all ratings are 1: they don't tell likes from dislikes, and no interaction counts as liked")
    assert noted(from_frame({**table, "rating": [5] * 4}), "every interaction counts as liked")


def test_without_ratings_all_is_liked_whatever_the_threshold() -> None:
    dataset = from_frame({"user_id": [1, 1], "item_id": [1, 2]}, liked_above=7)
    assert dataset.liked.all()
    assert noted(dataset, "liked_above=7 is left aside: there are no ratings")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", [3], 10**400])
def test_a_threshold_that_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="liked_above="):
        from_frame({"user_id": [1], "item_id": [1]}, liked_above=value)


def test_every_named_data_set_takes_the_threshold() -> None:
    dataset = load_dataset("ml-latest-small", liked_above=4)
    assert dataset.liked_above == 4 and dataset.liked.mean() < load_dataset("ml-latest-small").liked.mean()
    assert prepare(dataset).liked_above == 4


def test_where_nothing_is_liked_the_stream_advises_a_lower_threshold() -> None:
    rng = np.random.default_rng(0)
    table = {"user_id": np.repeat(np.arange(9), 30), "item_id": np.tile(np.arange(60), 5)[:270]}
    dataset = from_frame({**table, "rating": rng.integers(0, 2, 270), "timestamp": np.arange(270)})
    with pytest.raises(InvalidOption, match=r"no rating exceeds liked_above=3 \(the highest is 1\): load .* lower"):
        Stream(dataset)


@pytest.mark.parametrize("given_id", [[5], {"a": 1}, None, 5.0, True, "--5", "５", "5_0", "05", "\ud800", b"5", 10**30])
def test_an_id_that_is_none_of_the_data_set_is_refused_in_words(given_id: Any) -> None:
    dataset = from_frame({"user_id": [1, 5, 50], "item_id": [1, 5, 50]})
    with pytest.raises(UnknownName, match="there is no user"):
        dataset.user_index(given_id)


@pytest.mark.parametrize("ids", [[1, 5, -50], ["1", "5", "-50"]])
def test_ids_of_options_match_as_number_and_as_text_and_others_are_told_the_range(ids: list[Any]) -> None:
    dataset = from_frame({"user_id": ids, "item_id": ids})
    for given_id in (5, "5", np.int64(5), np.str_("5")):
        assert str(dataset.user(dataset.user_index(given_id)).id) == "5"
    assert dataset.user_index("-50") == dataset.user_index(-50)
    with pytest.raises(UnknownName, match="the ids are 3 numbers from -50 to 5"):
        dataset.user_index(55)


def test_an_unknown_text_id_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'ann'"):
        from_frame({"user_id": ["ann", "bob"], "item_id": [1, 2]}).user_index("anne")


PIECES = ["&", "amp;", "lt;", "#38;", "&#59", "<", "<a", ">", "/>", '"', " ", "\n", "x", "getTime", "\u2003", "&nbsp;"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_cleaned_text_is_what_decoding_until_nothing_changes_gives(raw: str) -> None:
    once = raw
    while (decoded := html.unescape(once)) != once:
        once = decoded
    assert clean_text(raw) == clean_text(once)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("&" + "amp;" * 60_000, "&"),
        ("&" + "#38;" * 60_000 + "lt;b&gt; x", ""),
        ("&" + "amp" * 60_000 + ";", "&"),
        ("<" * 100_000, "<" * 100_000),
        ("Heat" + "<a" * 100_000, "Heat"),
        ("Heat" + " " * 500_000 + "Two", "Heat Two"),
        ('"' * 300_000 + "x", '"' * 300_000 + "x"),
        ("Heat" + "/> " * 100_000, "Heat" + "/> " * 99_998 + "/>"),
    ],
    ids=["amp;", "#38;", "amp", "<", "<a", "spaces", "quotes", "ends of tags"],
)
def test_a_title_made_to_take_for_ever_takes_linear_time(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


def test_rows_of_each_order_and_split_of_a_table_give_the_same_data_set() -> None:
    rng = np.random.default_rng(3)
    table = {"user_id": rng.integers(0, 5, 60), "item_id": rng.integers(0, 30, 60), "timestamp": rng.permutation(60)}
    hashes = set()
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(60)
        hashes.add(from_frame({name: column[rows] for name, column in table.items()}).hash)
    assert len(hashes) == 1


def test_ids_far_apart_are_sorted_as_those_that_lie_close() -> None:
    far = [10**15, -(10**15), 3]
    dataset = from_frame({"user_id": far, "item_id": far, "timestamp": [1, 2, 3]})
    assert dataset.user_ids.tolist() == sorted(far)
    assert order(dataset) == sorted(far)


def test_the_empty_table_and_bad_tables_of_times_are_errors_of_build_too() -> None:
    with pytest.raises(DataError, match="no interactions"):
        build("none", "item", Rows([], [], None, None), {})
    with pytest.raises(DataError, match="odd: times, row 1"):
        build("odd", "item", Rows([1, 1, 1], [1, 2, 3], None, np.array([START, START * 1000, START])), {})


def test_the_table_of_pairs_is_complete() -> None:
    # Each pair of user and item once, however it is spread over times and repeats.
    pairs = list(itertools.product(range(4), range(5))) * 2
    dataset = from_frame({"user_id": [u for u, _ in pairs], "item_id": [i for _, i in pairs], "timestamp": range(40)})
    assert dataset.n_interactions == 20 and np.diff(dataset.indptr).tolist() == [5] * 4


def test_side_tables_of_64_bit_ids_match_as_text_and_so_do_options() -> None:
    ids = [1234567890123456789, 2**63 - 1]
    table = {"item_id": list(map(str, ids)), "title": ["A", "B"]}
    dataset = from_frame({"user_id": ids, "item_id": ids}, items=table)
    assert [(item.id, item.title) for item in dataset.items] == [(ids[0], "A"), (ids[1], "B")]
    assert dataset.user_index(str(ids[1])) == 1
    with pytest.raises(UnknownName):
        dataset.user_index(str(2**63))


def test_a_catalogue_never_mixes_ids_of_two_types() -> None:
    table = {"item_id": ["1", "2", "X9"], "title": ["A", "B", "C"]}
    dataset = from_frame({"user_id": [1, 1], "item_id": [1, 2]}, items=table)
    assert [item.id for item in dataset.items] == [1, 2]
    assert noted(dataset, "left out: X9")

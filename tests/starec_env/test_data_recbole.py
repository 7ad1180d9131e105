"""RecBole's atomic files: rows and sequences, whole and split."""

from pathlib import Path

import pytest
from support import shared_data

from starec_env import load_dataset
from starec_env.data.recbole import load_recbole
from starec_env.errors import DataError

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n2\t10\t3\t9.78e8\n1\t20\t5\t978300761\n1\t10\t4\t5\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq\n"
    "10\tToy Story\t1995\tComedy\n20\tUp\t\tDrama\n"
)


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_rows_items_and_users_are_read(tmp_path: Path) -> None:
    users = "user_id:token\tage:token\n1\t25\n2\t\n"
    dataset = load_dataset("recbole", written(tmp_path, x__inter=INTER, x__item=ITEM, x__user=users))
    assert dataset.user_ids.tolist() == [1, 2]
    assert dataset.timestamps.tolist() == [5, 978300761, 978000000]
    assert dataset.items[0].title == "Toy Story"
    assert dataset.items[0].attributes == {"year": "1995", "genre": "Comedy"}
    assert dataset.user(0).demographics == {"age": "25"}


def test_ids_that_are_not_all_plain_numbers_stay_text(tmp_path: Path) -> None:
    dataset = load_dataset("recbole", written(tmp_path, x__inter=INTER.replace("2\t10", "007\t10"), x__item=ITEM))
    assert dataset.user_ids.tolist() == ["007", "1"]
    assert dataset.items[0].id == "10"


@pytest.mark.parametrize("edition", ["agentcf-dense", "agentcf-sparse"])
def test_real_sequences_are_joined_from_their_three_splits(edition: str) -> None:
    folder = shared_data("amazon-cds", edition)
    dataset = load_dataset("recbole", folder)
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (100, 64_031, 800)
    assert dataset.domain == "music"
    (test,) = folder.glob("*.test.inter")
    for line in test.read_text().splitlines()[1:]:
        user, past, last = line.split("\t")
        index = dataset.user_index(int(user))
        rows = dataset.item_indices[dataset.indptr[index] : dataset.indptr[index + 1]]
        assert [dataset.items[i].id for i in rows] == [int(i) for i in (*past.split(), last)]
    assert dataset.items[5].title == "Andy & His Grandmother"
    assert "no ratings: every interaction counts as liked (rating 5)" in dataset.notes


def test_sequences_cut_to_their_last_items_are_joined(tmp_path: Path) -> None:
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    written(tmp_path, x__train__inter=header + "u\ta b\tc\nu\tb c\td\n", x__test__inter=header + "u\tc d\te\n")
    dataset = load_dataset("recbole", tmp_path)
    assert [dataset.items[i].id for i in dataset.item_indices] == list("abcde")


def test_a_sequence_that_contradicts_the_rows_before_is_an_error(tmp_path: Path) -> None:
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    with pytest.raises(DataError, match=r"x\.inter, line 3"):
        load_dataset("recbole", written(tmp_path, x__inter=header + "u\ta b\tc\nu\tz b\td\n"))


def test_split_rows_are_joined_in_order_and_several_sets_need_a_choice(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\n"
    written(
        tmp_path, x__test__inter=header + "u\tc\n", x__train__inter=header + "u\ta\n", x__valid__inter=header + "u\tb\n"
    )
    written(tmp_path, y__inter=header + "u\tz\n")
    with pytest.raises(DataError, match="several data sets"):
        load_dataset("recbole", tmp_path)
    dataset = load_dataset("recbole", tmp_path / "x.train.inter")
    assert [dataset.items[i].id for i in dataset.item_indices] == list("abc")
    order = "x.train.inter, then x.valid.inter, then x.test.inter, and within each file its order is the time"
    assert f"no timestamps: {order}" in dataset.notes


@pytest.mark.parametrize(
    ("inter", "where"),
    [
        ("user_id\titem_id\n1\t2\n", "line 1"),
        ("user_id:token\titem_id:number\n1\t2\n", "line 1"),
        ("user_id:token\tproduct:token\n1\t2\n", "line 1"),
        (INTER + "1\t20\n", "line 5"),
        (INTER + "1\t\t3\t4\n", "line 5"),
        (INTER + "1\t20\tgood\t4\n", "line 5"),
        (INTER + "1\t20\t5\t1e300\n", "line 5"),
        (INTER + "1\t20\tinf\t4\n", "line 5"),
        ("user_id:token\titem_id:token\n", "only its header"),
        ("", "empty"),
    ],
)
def test_malformed_interactions_are_errors_that_name_file_and_line(tmp_path: Path, inter: str, where: str) -> None:
    with pytest.raises(DataError, match=rf"x\.inter.*{where}"):
        load_dataset("recbole", written(tmp_path, x__inter=inter))


def test_a_wrong_encoding_is_an_error_with_its_line(tmp_path: Path) -> None:
    written(tmp_path, x__inter=INTER)
    (tmp_path / "x.item").write_bytes(ITEM.encode() + "30\tAmélie\t2001\tComedy\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.item, line 4"):
        load_dataset("recbole", tmp_path)


def test_a_folder_without_interactions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.inter file"):
        load_dataset("recbole", tmp_path)


def test_a_label_is_the_feedback_where_there_is_no_rating(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\tlabel:float\ttimestamp:float\n"
    dataset = load_dataset("recbole", written(tmp_path, x__inter=header + "u\ta\t1\t5\nu\tb\t0.0\t6\n"))
    assert (dataset.ratings.tolist(), dataset.liked_above) == ([1, 0], 0)
    assert dataset.liked.tolist() == [True, False]
    assert "no ratings: label, 0 or 1, is the feedback" in dataset.notes
    assert load_recbole("x", tmp_path, liked_above=0.5).liked_above == 0.5
    with pytest.raises(DataError, match="0 or 1 as label"):
        load_dataset("recbole", written(tmp_path, x__inter=header + "u\ta\t2\t5\n"))


def test_a_rating_is_the_feedback_where_there_is_a_label_too(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\tlabel:float\trating:float\n"
    dataset = load_dataset("recbole", written(tmp_path, x__inter=header + "u\ta\t0\t5\nu\tb\t1\t2\n"))
    assert (dataset.ratings.tolist(), dataset.liked_above) == ([5, 2], 3)
    assert "label is not used: rating is the feedback" in dataset.notes


@pytest.mark.parametrize("column", ["rating", "label", "timestamp"])
def test_splits_with_unlike_columns_are_refused_since_nothing_orders_them(tmp_path: Path, column: str) -> None:
    header = "user_id:token\titem_id:token"
    written(tmp_path, x__train__inter=f"{header}\t{column}:float\nu\ta\t1\n", x__test__inter=f"{header}\nu\tb\n")
    with pytest.raises(DataError, match=rf"x\.train\.inter: has the column {column}, and x\.test\.inter .* has not"):
        load_dataset("recbole", tmp_path)


def test_splits_may_have_their_columns_in_another_order(tmp_path: Path) -> None:
    written(
        tmp_path,
        x__train__inter="user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t4\t10\n",
        x__test__inter="timestamp:float\trating:float\titem_id:token\tuser_id:token\n20\t2\tb\tu\n",
    )
    dataset = load_dataset("recbole", tmp_path)
    assert (dataset.ratings.tolist(), dataset.timestamps.tolist()) == ([4, 2], [10, 20])


def test_splits_without_times_keep_test_last_where_ids_ascend_too(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\n"
    train = "".join(f"{user}\t{item}\n" for user in range(10) for item in range(100, 110))
    test = "".join(f"{user}\t5\n" for user in range(10))
    dataset = load_dataset("recbole", written(tmp_path, x__train__inter=header + train, x__test__inter=header + test))
    assert [dataset.items[i].id for i in dataset.item_indices[dataset.indptr[1:] - 1]] == [5] * 10
    assert any(note.startswith("no timestamps: x.train.inter, then x.test.inter") for note in dataset.notes)


def test_times_below_the_second_order_rows(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    for times in (("1600000000300", "1600000000100"), ("1600000000.3", "1600000000.1")):
        rows = "".join(f"u\t{item}\t{time}\n" for item, time in zip("ba", times, strict=True))
        dataset = load_dataset("recbole", written(tmp_path, x__inter=header + rows))
        assert [dataset.items[i].id for i in dataset.item_indices] == ["a", "b"]
        assert dataset.timestamps.tolist() == [1_600_000_000] * 2


def test_ids_of_all_tables_are_numbers_or_text_together(tmp_path: Path) -> None:
    written(
        tmp_path, x__inter=INTER, x__item=ITEM + "x9\tOdd\t1999\tDrama\n", x__user="user_id:token\tage:token\n1\t25\n"
    )
    dataset = load_dataset("recbole", tmp_path)
    assert dataset.user_ids.tolist() == ["1", "2"]
    assert dataset.user(0).demographics == {"age": "25"}
    assert dataset.items[dataset.item_index("10")].title == "Toy Story"


def test_ids_as_no_int_prints_them_or_beyond_64_bits_stay_text(tmp_path: Path) -> None:
    rows = f"user_id:token\titem_id:token\n1\t1_0\n1\t２\n{2**63}\t10\n{2**63 + 1}\t-0\n"
    dataset = load_dataset("recbole", written(tmp_path, x__inter=rows))
    assert sorted(dataset.user_ids.tolist()) == ["1", str(2**63), str(2**63 + 1)]
    assert sorted(item.id for item in dataset.items) == ["-0", "10", "1_0", "２"]


def test_a_user_file_that_repeats_an_id_keeps_the_first_and_says_so(tmp_path: Path) -> None:
    users = "user_id:token\tage:token\n1\t25\n2\t30\n1\t99\n"
    dataset = load_dataset("recbole", written(tmp_path, x__inter=INTER, x__user=users))
    assert dataset.user(0).demographics == {"age": "25"}
    assert "rows of the user file that repeat an id, the first kept: 1" in dataset.notes


def test_a_whole_file_is_read_before_its_splits_and_a_split_that_is_named_with_the_others(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\n"
    written(tmp_path, x__inter=header + "u\ta\n", x__train__inter=header + "u\tb\n", x__test__inter=header + "u\tc\n")
    (tmp_path / "x.inter.gz").write_text(header + "u\td\n")
    whole = load_dataset("recbole", tmp_path)
    assert [item.id for item in whole.items] == ["a"]
    assert any("x.inter is read" in note and "x.inter.gz" in note and "x.train.inter" in note for note in whole.notes)
    assert [item.id for item in load_dataset("recbole", tmp_path / "x.inter.gz").items] == ["d"]
    assert [item.id for item in load_dataset("recbole", tmp_path / "x.test.inter").items] == ["b", "c"]


def test_ratings_beside_sequences_are_left_out_and_a_note_says_so(tmp_path: Path) -> None:
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\trating:float\n"
    dataset = load_dataset("recbole", written(tmp_path, x__inter=header + "u\ta b\tc\t1\n"))
    assert dataset.ratings.tolist() == [5, 5, 5]
    assert "rating not used: of a sequence only the last item has one" in dataset.notes


def test_a_bad_sequence_is_left_out_and_counted(tmp_path: Path) -> None:
    header = b"user_id:token\titem_id_list:token_seq\titem_id:token\n"
    rows = b"".join(b"u%d\ta b\tc\n" % user for user in range(200))
    for bad in (b"\ta b\tc\n", b"x\ta \xe9\tc\n", b"u1\tb a\tc\n", b"x\ta b\t\n"):
        (tmp_path / "x.inter").write_bytes(header + rows + bad)
        dataset = load_dataset("recbole", tmp_path)
        assert (dataset.n_users, dataset.n_interactions) == (200, 600)
        assert any("1 of 201 rows of" in note and "first line 202: got" in note for note in dataset.notes)


def test_a_test_row_never_comes_before_training_of_the_same_time(tmp_path: Path) -> None:
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    train = "".join(f"{user}\t{item}\t100\n" for user in range(30) for item in range(1, 6))
    (tmp_path / "x.train.inter").write_text(head + train)
    (tmp_path / "x.test.inter").write_text(head + "".join(f"{user}\t6\t100\n" for user in range(30)))
    dataset = load_dataset("recbole", tmp_path)
    assert any("a hash orders them" in note for note in dataset.notes)
    assert {dataset.items[dataset.item_indices[stop - 1]].id for stop in dataset.indptr[1:]} == {6}

"""Who trains and who is tested, and which rows training may see."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import make_dataset

from starec_env.data.cut import (
    catalogue_only,
    earlier,
    rows_only,
    stops_before,
    target_rows,
    windows_only,
    without_empty_users,
)
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split, apart_from, make_split, read_users, sample, split_users
from starec_env.errors import DataError, InvalidOption, RunError
from starec_env.reading import READINGS, Reading


def test_no_user_is_in_two_parts_and_nobody_is_lost() -> None:
    users = list(range(100))
    split = split_users(users, test=22, validation=9, seed=3)
    assert [len(split.test), len(split.validation), len(split.train)] == [22, 9, 69]
    assert sorted([*split.test, *split.validation, *split.train]) == users
    assert split == split_users(users, test=22, validation=9, seed=3) != split_users(users, test=22, validation=9)


def test_a_split_that_leaves_nobody_to_train_is_refused() -> None:
    with pytest.raises(InvalidOption, match="nobody is left to train on"):
        split_users([1, 2, 3], test=2, validation=1)


def test_a_split_file_holds_all_that_decides_who_is_tested_and_reads_back_the_same(tmp_path: Path) -> None:
    split = make_split(DataSpec(), READINGS["paper"], test=100, validation=50, train=200)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    assert [len(split.train), len(split.validation), len(split.test)] == [200, 50, 100]
    assert not {*split.train} & {*split.test, *split.validation} and split.reading == READINGS["paper"]
    data = split.load_dataset()
    assert data.hash == split.data_hash and set(split.test) <= set(data.user_ids.tolist())
    assert read_users(tmp_path / "split.json")["heldout"] == [*split.validation, *split.test]


def test_another_seed_reading_or_part_is_another_split_and_is_not_written_over_the_first(tmp_path: Path) -> None:
    first = make_split(DataSpec(), test=100)
    first.save(tmp_path / "split.json")
    first.save(tmp_path / "split.json")
    for other in (make_split(DataSpec(), test=100, seed=1), make_split(DataSpec(), READINGS["paper"], test=100)):
        assert other.hash != first.hash
        with pytest.raises(RunError, match="another split"):
            other.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == first


def test_a_split_follows_its_reading_where_preparation_alone_does_not_make_the_rows() -> None:
    liked = make_split(DataSpec(), Reading(sequences="liked"), test=50)
    data = liked.load_dataset()
    assert data.hash == liked.data_hash != make_split(DataSpec(), test=50).data_hash
    assert all(data.liked[data.starts[user] : data.indptr[user + 1]].all() for user in range(data.n_users))
    with pytest.raises(InvalidOption, match="shuffled"):
        make_split(DataSpec(), Reading(time_ties="shuffled"), test=50)


def test_a_split_of_other_data_is_refused_with_both_hashes() -> None:
    split = make_split(DataSpec(), test=50)
    other = DataSpec(min_interactions=5).load()
    with pytest.raises(DataError, match=f"{split.data_hash}.*{other.hash}"):
        split.check(other)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"train": [1, 2], "test": ["2"]}', "1 users are in train and in test, the first 2"),
        ('{"train": [], "training": [1]}', "training: Extra inputs"),
        ('{"train": [], "reading": {"negatives": "none"}}', "negatives"),
        ("1,2", "no split file"),
    ],
)
def test_what_is_no_split_is_refused_with_the_reason(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=why):
        Split.load(tmp_path / "split.json")


def test_a_sample_has_each_user_at_most_once() -> None:
    users = np.arange(10, 60)
    assert len(set(sample(users, 20, 0).tolist())) == 20
    assert sorted(sample(users, 99, 0).tolist()) == users.tolist()


def test_ids_held_out_as_text_and_as_numbers_are_the_same_users() -> None:
    assert apart_from([1, 2, 3], ["2"]) == [1, 3]
    assert apart_from(["1", "2"], [2]) == ["1"]


def test_users_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text(json.dumps({"train": [1], "heldout": [2, 3]}))
    (tmp_path / "ids.txt").write_text("4\n5\n")
    pq.write_table(pa.table({"user_id": [6, 6, 7]}), tmp_path / "candidates.parquet")
    assert read_users(tmp_path / "users.json") == {"train": [1], "heldout": [2, 3]}
    assert read_users(tmp_path / "ids.txt") == {"train": [], "heldout": ["4", "5"]}
    assert read_users(tmp_path / "ids.txt", alone="train") == {"train": ["4", "5"], "heldout": []}
    assert read_users(str(tmp_path / "candidates.parquet"))["heldout"] == [6, 7]


@pytest.mark.parametrize("text", ["{}", "[1, 2]", "no json"])
def test_a_file_that_is_none_of_users_is_refused_with_what_would_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "users.json").write_text(text)
    with pytest.raises(DataError, match="a split file, a JSON with train and heldout"):
        read_users(tmp_path / "users.json")
    pq.write_table(pa.table({"item": [4]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="other.parquet is no file of users"):
        read_users(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="missing.txt"):
        read_users(tmp_path / "missing.txt")


def test_rows_of_users_are_cut_with_all_their_columns() -> None:
    dataset = replace(make_dataset(n_users=3, n_items=30, length=5), nanoseconds=np.arange(15, dtype=np.int32))
    cut = rows_only(dataset, np.array([1, 5, 10]), np.array([4, 5, 15]))
    assert cut.indptr.tolist() == [0, 3, 3, 8]
    assert cut.nanoseconds is not None and cut.nanoseconds.tolist() == [1, 2, 3, 10, 11, 12, 13, 14]
    left = without_empty_users(cut)
    assert left.user_ids.tolist() == [1, 3] and left.indptr.tolist() == [0, 3, 8]
    assert left.demographics == [dataset.demographics[0], dataset.demographics[2]]  # type: ignore[index]
    windowed = replace(dataset, window=dataset.indptr[:-1] + 2)
    assert windows_only(windowed).nanoseconds.tolist() == [2, 3, 4, 7, 8, 9, 12, 13, 14]  # type: ignore[union-attr]
    assert catalogue_only(windowed).n_interactions == 0 and catalogue_only(windowed).items == dataset.items


def test_a_targets_row_is_found_and_training_stops_before_a_users_first() -> None:
    dataset = make_dataset(n_users=4, n_items=30, length=6)
    users = np.array([0, 0, 2])
    rows = target_rows(dataset, users, dataset.item_indices[[4, 2, 17]])
    assert rows.tolist() == [4, 2, 17]
    assert stops_before(dataset, users, rows).tolist() == [2, 12, 17, 24]
    absent = next(item for item in range(30) if item not in dataset.item_indices[6:12])
    assert target_rows(dataset, np.array([1]), np.array([absent])).tolist() == [-1]
    assert stops_before(dataset, np.array([1]), np.array([-1])).tolist() == [6, 6, 18, 24]


def test_earlier_is_strict_to_the_nanosecond() -> None:
    dataset = make_dataset(n_users=1, n_items=30, length=5)
    dataset = replace(dataset, timestamps=np.array([1, 2, 2, 2, 3]))
    assert earlier(dataset, np.array([2, 4])).tolist() == [True, False, False, False, False]
    finer = replace(dataset, nanoseconds=np.array([9, 0, 5, 5, 0], np.int32))
    assert earlier(finer, np.array([2, 4])).tolist() == [True, True, False, False, False]


def test_a_byte_order_mark_is_no_part_of_the_first_user(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_bytes(b"\xef\xbb\xbf1\r\n2\r\n")
    (tmp_path / "users.json").write_bytes(b'\xef\xbb\xbf{"train": [1], "heldout": [2]}')
    assert read_users(tmp_path / "users.txt")["heldout"] == ["1", "2"]
    assert read_users(tmp_path / "users.json") == {"train": [1], "heldout": [2]}

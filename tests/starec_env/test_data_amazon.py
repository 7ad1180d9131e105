"""The Amazon loader, on real reviews of 2018 and on small files of each edition."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared_data

from starec_env import load_dataset
from starec_env.data.build import clean_text, guess_domain
from starec_env.errors import DataError

OLD = [
    {"reviewerID": "A2", "asin": "B1", "overall": 5.0, "unixReviewTime": 200, "reviewText": "Fine <3"},
    {"reviewerID": "A1", "asin": "B2", "overall": 2.0, "unixReviewTime": 100},
    {"reviewerID": "A1", "asin": "B1", "overall": 4.0, "unixReviewTime": 50},
]


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_real_cds_are_music_and_their_junk_titles_are_counted() -> None:
    dataset = load_dataset("amazon", shared_data("amazon-cds", "r3"))
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (2991, 5590, 26_000 - 318)
    assert dataset.domain == "music"
    assert "titles that are nothing but page markup, taken as none: 29" in dataset.notes
    assert "318 repeated interactions with the same item dropped: the earliest is kept" in dataset.notes
    assert dataset.items[dataset.item_index("B0144TVVGO")].title == "Bluenote Café"
    assert dataset.items[dataset.item_index("7883938797")].title == "Untitled item 7883938797"
    assert not any("<" in item.title or "&amp;" in item.title or "/>" in item.title for item in dataset.items)


def test_the_2018_edition_gives_titles_artists_and_categories(tmp_path: Path) -> None:
    (tmp_path / "CDs_and_Vinyl_5.json.gz").write_bytes(gzip.compress(lines(*OLD)))
    meta = [
        {
            "asin": "B1",
            "title": "Led Zeppelin IV",
            "brand": "Led Zeppelin",
            "category": ["CDs & Vinyl", "Rock", "Hard Rock"],
        },
        {"asin": "B2", "title": "var x = getTime();", "brand": ["?"], "category": {"a": 1}},
        {"asin": "B9", "title": "Never reviewed"},
    ]
    (tmp_path / "meta_CDs_and_Vinyl.json.gz").write_bytes(gzip.compress(lines(*meta)))
    dataset = load_dataset("amazon", tmp_path)
    assert dataset.user_ids.tolist() == ["A1", "A2"]
    assert dataset.timestamps.tolist() == [50, 100, 200]
    assert dataset.items[0].attributes == {"artist": "Led Zeppelin", "categories": "Rock, Hard Rock"}
    assert dataset.items[1].title == "Untitled item B2"
    assert "metadata of items without a review, left out: 1" in dataset.notes


def test_the_2014_edition_s_metadata_printed_by_python_are_read(tmp_path: Path) -> None:
    (tmp_path / "reviews_Books_5.json").write_bytes(lines(*OLD))
    (tmp_path / "meta_Books.json").write_text(
        "{'asin': 'B1', 'title': \"It's\", 'brand': 'Ann', 'categories': [['Books', 'Poetry'], ['Books', 'Drama']]}\n"
    )
    dataset = load_dataset("amazon", tmp_path)
    assert dataset.domain == "item"
    assert dataset.items[0].title == "It's"
    assert dataset.items[0].attributes == {"brand": "Ann", "categories": "Poetry, Drama"}
    assert "1 item of the interactions missing from the catalogue: B2" in dataset.notes


META_2023 = {
    "parent_asin": "P1",
    "title": "Nevermind",
    "store": "Nirvana   Format: Vinyl",
    "categories": ["CDs & Vinyl", "Alternative Rock"],
}


def test_the_2023_edition_in_json_lines_is_read_with_parent_ids_and_milliseconds(tmp_path: Path) -> None:
    row = {"rating": 5.0, "user_id": "U", "asin": "C1", "parent_asin": "P1", "timestamp": 1_600_000_000_123}
    (tmp_path / "CDs_and_Vinyl.jsonl.gz").write_bytes(gzip.compress(lines(row)))
    (tmp_path / "meta_CDs_and_Vinyl.jsonl").write_bytes(lines(META_2023))
    dataset = load_dataset("amazon", tmp_path)
    assert dataset.items[0].id == "P1"
    assert dataset.items[0].attributes == {"artist": "Nirvana", "categories": "Alternative Rock"}
    assert dataset.timestamps.tolist() == [1_600_000_000]


def test_the_2023_edition_in_csv_is_read_and_its_splits_are_joined(tmp_path: Path) -> None:
    header = "user_id,parent_asin,rating,timestamp,history\n"
    (tmp_path / "CDs.train.csv").write_text(header + "U,P1,5.0,1600000000000,\n")
    (tmp_path / "CDs.test.csv.gz").write_bytes(gzip.compress((header + "U,P2,1.0,1700000000000,P1\n").encode()))
    (tmp_path / "meta_CDs.jsonl").write_bytes(lines(META_2023))
    dataset = load_dataset("amazon", tmp_path)
    assert [dataset.items[i].id for i in dataset.item_indices] == ["P1", "P2"]
    assert dataset.ratings.tolist() == [5, 1]


def test_a_file_of_reviews_finds_the_metadata_beside_it(tmp_path: Path) -> None:
    for category in ("Books", "Toys"):
        (tmp_path / f"{category}_5.json").write_bytes(lines(*OLD))
        (tmp_path / f"meta_{category}.json").write_bytes(lines({"asin": "B1", "title": category}))
    assert load_dataset("amazon", tmp_path / "Toys_5.json").items[0].title == "Toys"
    with pytest.raises(DataError, match="several files of reviews"):
        load_dataset("amazon", tmp_path)


def test_without_metadata_items_are_untitled_and_a_note_says_why(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_bytes(lines(*OLD))
    dataset = load_dataset("amazon", tmp_path)
    assert any("no metadata beside reviews.json" in note for note in dataset.notes)


def test_incomplete_reviews_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_bytes(
        lines(*OLD, {"reviewerID": "A3", "asin": "B1", "unixReviewTime": 3}, {**OLD[0], "asin": "B3", "overall": 11})
    )
    dataset = load_dataset("amazon", tmp_path)
    assert dataset.n_interactions == 3
    assert "reviews without a user, item, rating or time, left out: 1" in dataset.notes
    assert "reviews with a rating outside 0 to 5, left out: 1" in dataset.notes


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("reviews.json", lines(*OLD) + b'{"reviewerID": "A9", "asin\n', "line 4"),
        ("reviews.json", lines(*OLD) + b"[1, 2]\n", "line 4"),
        ("reviews.json", lines(*OLD) + b"{'a': " + b"(" * 5000 + b"\n", "line 4"),
        ("reviews.json", lines({**OLD[0], "overall": "five"}), "line 1"),
        ("reviews.json", lines({**OLD[0], "unixReviewTime": [1]}), "line 1"),
        ("reviews.json", lines({**OLD[0], "unixReviewTime": 10**400}), "line 1"),
        ("reviews.json", lines(OLD[0]) + b"\xff\xfe\n", "line 2"),
        ("reviews.json", b"", "the file is empty"),
        ("reviews.csv", b"A1,B1,5.0,100\n", "line 1"),
        ("reviews.csv", b"user_id,parent_asin,rating,timestamp\nU,P,5.0\n", "line 2"),
        ("reviews.csv", b"user_id,parent_asin,rating,timestamp\nU,P,5.0,noon\n", "line 2"),
        ("reviews.json.gz", gzip.compress(lines(*OLD * 500))[:-20], "cut short"),
        ("reviews.json.gz", gzip.compress(lines(*OLD))[:12] + b"\xff" * 40, "cut short or damaged"),
        ("notes.txt", b"x", "no file of reviews"),
    ],
)
def test_damaged_files_are_errors_that_name_the_place(tmp_path: Path, name: str, content: bytes, where: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=where):
        load_dataset("amazon", tmp_path)


@settings(max_examples=50)
@given(st.text())
def test_cleaned_text_is_stable_and_free_of_line_breaks(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ('"<span class=""a-size-medium a-color-secondary a-text-normal"', ""),
        ('"Rosanne Cash,The List,Country &amp;amp; Western"" />"', "Rosanne Cash,The List,Country & Western"),
        ("Motown 1&#39;s", "Motown 1's"),
        ('"Heroes"', '"Heroes"'),
        ("I <3 Love < Hate", "I <3 Love < Hate"),
    ],
)
def test_scraped_titles_are_cleaned_of_markup_alone(raw: str, shown: str) -> None:
    assert clean_text(raw) == shown


@pytest.mark.parametrize(
    ("name", "domain"),
    [("CDs_and_Vinyl_5.json.gz", "music"), ("Digital_Music.jsonl", "music"), ("Movies_and_TV.json", "movie")]
    + [("ml-1m", "movie"), ("Books_5.json", "item"), ("Records_of_abcds", "item"), ("amazon-cds", "music")],
)
def test_the_domain_is_guessed_from_whole_words(name: str, domain: str) -> None:
    assert guess_domain(name) == domain


def test_times_in_milliseconds_order_rows_within_a_second(tmp_path: Path) -> None:
    rows = [{"user_id": "U", "parent_asin": i, "rating": 5, "timestamp": 1_600_000_000_000 + t} for t, i in
            [(300, "c"), (100, "a"), (200, "b")]]  # fmt: skip
    (tmp_path / "CDs.jsonl").write_bytes(lines(*rows))
    dataset = load_dataset("amazon", tmp_path)
    assert [dataset.items[i].id for i in dataset.item_indices] == ["a", "b", "c"]
    assert dataset.timestamps.tolist() == [1_600_000_000] * 3
    text = "".join(f"U,{row['parent_asin']},5,{row['timestamp']}\n" for row in rows)
    (tmp_path / "CDs.jsonl").rename(tmp_path / "CDs.csv")
    (tmp_path / "CDs.csv").write_text("user_id,parent_asin,rating,timestamp\n" + text)
    assert load_dataset("amazon", tmp_path).hash == dataset.hash


def test_of_metadata_that_repeat_an_id_the_first_with_a_title_counts(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_bytes(lines(*OLD))
    meta = [{"asin": "B1", "title": ""}, {"asin": "B1", "title": "Blue"}, {"asin": "B1", "title": "Other"}]
    (tmp_path / "meta.json").write_bytes(lines(*meta))
    dataset = load_dataset("amazon", tmp_path)
    assert dataset.items[0].title == "Blue"
    assert "metadata that repeat an id, the first with a title kept: 2" in dataset.notes


def test_whole_numbers_as_ids_are_text_in_reviews_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_bytes(lines({**OLD[0], "asin": 7, "reviewerID": 2**63}))
    (tmp_path / "meta.json").write_bytes(lines({"asin": "7", "title": "Seven"}))
    dataset = load_dataset("amazon", tmp_path)
    assert dataset.user_ids.tolist() == [str(2**63)]
    assert (dataset.items[0].id, dataset.items[0].title) == ("7", "Seven")


def test_what_is_liked_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_bytes(lines(*OLD))
    dataset = load_dataset("amazon", tmp_path, liked_above=4)
    assert (dataset.liked_above, int(dataset.liked.sum())) == (4, 1)


def test_metadata_of_other_items_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_bytes(lines(*OLD))
    (tmp_path / "meta.json").write_bytes(lines({"asin": "Z1", "title": "Elsewhere"}))
    with pytest.raises(DataError, match=r"meta\.json: none of its items has a review in reviews\.json"):
        load_dataset("amazon", tmp_path)


def test_a_split_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    for name in ("CDs.train.csv", "CDs.train.csv.gz"):
        (tmp_path / name).write_text("user_id,parent_asin,rating,timestamp\nU,P1,5.0,1600000000000\n")
    with pytest.raises(DataError, match="several files of reviews"):
        load_dataset("amazon", tmp_path)


def test_a_test_review_never_comes_before_training_of_the_same_time(tmp_path: Path) -> None:
    head = "user_id,parent_asin,rating,timestamp\n"
    train = "".join(f"U{user},A{item},5,1600000000000\n" for user in range(30) for item in range(5))
    (tmp_path / "Books.train.csv").write_text(head + train)
    (tmp_path / "Books.test.csv").write_text(head + "".join(f"U{user},A9,5,1600000000000\n" for user in range(30)))
    dataset = load_dataset("amazon", tmp_path)
    assert any("a hash orders them" in note for note in dataset.notes)
    assert {dataset.items[dataset.item_indices[stop - 1]].id for stop in dataset.indptr[1:]} == {"A9"}

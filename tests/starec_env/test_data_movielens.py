"""MovieLens loaders, on the real files and on small made ones with every fault that a file can have."""

import gzip
import stat
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared_data

from starec_env import load_dataset
from starec_env.errors import DataError, StarecError, UnknownName

RATINGS = "1::10::5::978300760\n1::20::3::978300761\n2::10::1::978300000\n"
MOVIES = "10::Toy Story (1995)::Animation|Comedy\n20::Misérables, Les (1995)::Drama\n30::Nobody's Film::Drama\n"
USERS = "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n"


def ml_1m(
    folder: Path, ratings: bytes | str = RATINGS, movies: bytes | str = MOVIES, users: bytes | str = USERS
) -> Path:
    for name, text in {"ratings": ratings, "movies": movies, "users": users}.items():
        (folder / f"{name}.dat").write_bytes(text.encode("latin-1") if isinstance(text, str) else text)
    return folder


def test_bundled_data_have_the_published_counts_and_say_which_titles_are_missing() -> None:
    dataset = load_dataset("ml-latest-small")
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (671, 9066, 100_004)
    assert dataset.domain == "movie"
    assert "5 items have no title: shown as 'Untitled item 108548' and so on" in dataset.notes
    heat = dataset.items[dataset.item_index(6)]
    assert heat.title == "Heat (1995)"
    assert heat.attributes == {"year": "1995", "genres": "Action, Crime, Thriller"}


def test_bundled_data_equal_the_files_they_were_made_of() -> None:
    folder = load_dataset("ml-latest-small", shared_data("ml-latest-small"))
    assert folder.hash == load_dataset("ml-latest-small").hash


def test_bundled_data_are_small_and_carry_their_licence() -> None:
    import starec_env.data

    folder = Path(starec_env.data.__file__).parent / "bundled"
    assert (folder / "ml-latest-small.zip").stat().st_size < 1.5e6
    assert "10.1145/2827872" in (folder / "LICENSE-ml-latest-small.txt").read_text()


def test_every_row_of_real_ml_1m_arrives_in_order_of_time_then_file() -> None:
    folder = shared_data("ml-1m")
    dataset = load_dataset("ml-1m", folder)
    lines = [tuple(map(int, line.split("::"))) for line in (folder / "ratings.dat").read_text().splitlines()]
    lines.sort(key=lambda row: (row[0], row[3]))  # Python's sort is stable
    users = np.repeat(dataset.user_ids, np.diff(dataset.indptr))
    items = np.array([item.id for item in dataset.items])[dataset.item_indices]
    assert np.array_equal(np.array(lines), np.stack([users, items, dataset.ratings, dataset.timestamps], axis=1))
    assert dataset.n_items == 3883
    assert "3,041 users of the user file without interactions: left out" in dataset.notes
    assert dataset.items[dataset.item_index(73)].title == "Misérables, Les (1995)"


def test_demographics_of_ml_1m_are_words(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path))
    assert dataset.user(0).demographics == {"gender": "female", "age": "under 18", "occupation": "K-12 student"}
    assert dataset.user(1).demographics == {"gender": "male", "age": "56+", "occupation": "self-employed"}
    assert dataset.items[1].title == "Misérables, Les (1995)"
    assert "1 item of the catalogue has no interaction" in dataset.notes
    assert "1 user of the user file without interactions: left out" in dataset.notes


def test_users_without_a_row_in_the_user_file_are_counted(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path, users="1::F::1::10::48067\n"))
    assert "1 user without demographics" in dataset.notes
    assert dataset.user(1).demographics == {}


def test_ratings_of_unknown_items_are_kept_and_reported(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path, ratings=RATINGS + "2::99::4::978300001\n"))
    assert dataset.items[dataset.item_index(99)].title == "Untitled item 99"
    assert "1 item of the interactions missing from the catalogue: 99" in dataset.notes


def test_repeated_ratings_leave_the_earliest_and_are_counted(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path, ratings=RATINGS + "1::10::2::978300000\n"))
    assert dataset.n_interactions == 3
    assert (dataset.ratings[0], dataset.timestamps[0]) == (2, 978300000)
    assert "1 repeated interaction with the same item dropped: the earliest is kept" in dataset.notes


def test_a_catalogue_that_repeats_an_id_keeps_the_first_and_says_so(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path, movies=MOVIES + "10::Another (2000)::Drama\n"))
    assert dataset.items[0].title == "Toy Story (1995)"
    assert "catalogue rows that repeat an id, the first with a title kept: 1" in dataset.notes


def test_shared_titles_are_kept_and_counted(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path, movies=MOVIES.replace("Nobody's Film", "Toy Story (1995)")))
    assert any("shared by 2 items, most by 'Toy Story (1995)'" in note for note in dataset.notes)


def test_line_ends_of_windows_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    plain = load_dataset("ml-1m", ml_1m(tmp_path)).hash
    assert (
        load_dataset("ml-1m", ml_1m(tmp_path, *(t.replace("\n", "\r\n") for t in (RATINGS, MOVIES, USERS)))).hash
        == plain
    )
    assert load_dataset("ml-1m", ml_1m(tmp_path, b"\xef\xbb\xbf" + RATINGS.encode() + b"\n\n")).hash == plain


def test_a_file_saved_again_as_utf_8_is_read_as_that_and_reported(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path, movies=MOVIES.encode("utf-8")))
    assert dataset.items[1].title == "Misérables, Les (1995)"
    assert any("UTF-8, not the official latin-1" in note for note in dataset.notes)


def test_a_latin_1_byte_that_unicode_calls_a_line_end_breaks_no_line(tmp_path: Path) -> None:
    movies = MOVIES.encode("latin-1").replace(b"Nobody's", b"Nobody\x85s \xe9")
    assert load_dataset("ml-1m", ml_1m(tmp_path, movies=movies)).n_items == 3


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1::10::5", "1::10::5"),
        ("1::10::5::978300760::9", "::9"),
        ("one::10::5::978300760", "one"),
        ("1::10::9::978300760", "0.5 to 5"),
        ("1::10::0::978300760", "0.5 to 5"),
        ("1::10::nan::978300760", "nan"),
        ("1::10::5::99999999999999999999", "99999999999999999999"),
        ("1::10::5::1000000000000000", "1000000000000000"),
        ("1::10::5::noon", "noon"),
        ("1,10,5,978300760", "1,10,5"),
        ("\x00\x01\x02", "wanted UserID::MovieID::Rating::Timestamp, in UTF-8 and without NUL"),
        ("01::10::5::978300760", "01::10"),
        ("1_0::10::5::978300760", "1_0"),
        ("1::1\t0::5::978300760", "whole numbers"),
    ],
)
def test_a_malformed_rating_is_an_error_that_names_file_and_line(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(DataError, match=r"ratings\.dat, line 4") as caught:
        load_dataset("ml-1m", ml_1m(tmp_path, ratings=RATINGS + line + "\n" + RATINGS))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "where"),
    [
        ("movies", "10::Toy Story (1995)\n", r"movies\.dat, line 1"),
        ("movies", MOVIES + "x::Up (2009)::Drama\n", r"movies\.dat, line 4"),
        ("users", "1::X::1::10::48067\n", r"users\.dat, line 1"),
        ("users", USERS + "4::F::1::99::48067\n", r"users\.dat, line 4"),
        ("ratings", "", r"ratings\.dat: the file is empty"),
        ("movies", "\n \n", r"movies\.dat: the file is empty"),
        ("movies", MOVIES.encode("utf-16"), "UTF-16"),
    ],
)
def test_other_malformed_files_are_errors_that_name_the_place(
    tmp_path: Path, file: str, text: str | bytes, where: str
) -> None:
    with pytest.raises(DataError, match=where):
        load_dataset("ml-1m", ml_1m(tmp_path, **{file: text}))


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    (ml_1m(tmp_path) / "movies.dat").unlink()
    with pytest.raises(DataError, match=r"no movies\.dat"):
        load_dataset("ml-1m", tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset("ml-1m", tmp_path / "nowhere")


ODD = [
    "",
    "  ",
    "1::10::5",
    "01::10::5::9",
    "1_0::10::5::9",
    "２::10::5::9",
    "1::1\t0::5::9",
    "1::10::6::9",
    "x",
    "\x7f",
]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 299), st.sampled_from(ODD), max_size=3))
def test_bad_rows_are_left_out_and_counted_with_their_line_and_all_others_are_read(
    tmp_path_factory: pytest.TempPathFactory, odd: dict[int, str]
) -> None:
    lines = [f"{1 + n // 30}::{1 + n % 30}::{1 + n % 5}::{1000 + n}" for n in range(300)]
    for place, line in sorted(odd.items(), reverse=True):
        lines.insert(place, line)
    text = "\n".join(lines).encode()
    dataset = load_dataset("ml-1m", ml_1m(tmp_path_factory.mktemp("odd"), ratings=text, movies="1::Up::Drama\n"))
    assert dataset.timestamps.tolist() == list(range(1000, 1300))
    assert (dataset.user_ids[dataset.owner] == 1 + np.arange(300) // 30).all()
    bad = [number for number, line in enumerate(lines, 1) if line.strip() and line in ODD]
    notes = [note for note in dataset.notes if "could not be read" in note]
    assert len(notes) == bool(bad)
    if bad:
        assert notes[0].startswith(f"{len(bad)} of {300 + len(bad)} rows of") and f"first line {bad[0]}: " in notes[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(RATINGS)), st.binary(max_size=4), st.integers(0, 6))
def test_damaged_ratings_never_fail_but_with_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, inserted: bytes, removed: int
) -> None:
    raw = RATINGS.encode()
    folder = ml_1m(tmp_path_factory.mktemp("damaged"), ratings=raw[:at] + inserted + raw[at + removed :])
    try:
        assert load_dataset("ml-1m", folder).n_interactions > 0
    except DataError as fault:
        assert "ratings.dat" in str(fault)


def test_a_csv_title_may_hold_commas_quotes_and_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n7,1,0.5,100\n7,2,4.5,50\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"Good, the ""Bad"" (1966)",Western\n2,"Two\nLines",(no genres listed)\n'
    )
    dataset = load_dataset("ml-latest-small", tmp_path)
    assert dataset.items[0].title == 'Good, the "Bad" (1966)'
    assert dataset.items[1].attributes == {}
    assert dataset.ratings.tolist() == [4.5, 0.5]


@pytest.mark.parametrize(
    ("movies", "ratings", "where"),
    [
        ("movieId,title,genres\n1,A\n", "userId,movieId,rating,timestamp\n1,1,4,1\n", r"movies\.csv, line 2"),
        ("id,title\n1,A\n", "userId,movieId,rating,timestamp\n1,1,4,1\n", r"movies\.csv, line 1"),
        ("movieId,title,genres\n1,A,B\n", "user,movie,rating,timestamp\n1,1,4,1\n", r"ratings\.csv, line 1"),
        ("movieId,title,genres\n1,A,B\n", "userId,movieId,rating,timestamp\n1,1,4,1\n1,1\n", r"ratings\.csv, line 3"),
        ("movieId,title,genres\n1,A,B\n", "userId,movieId,rating,timestamp\n", "only its header"),
        ('movieId,title,genres\n1,"A,B\n', "userId,movieId,rating,timestamp\n1,1,4,1\n", r"movies\.csv, line 2"),
    ],
)
def test_a_malformed_csv_is_an_error_that_names_the_place(
    tmp_path: Path, movies: str, ratings: str, where: str
) -> None:
    (tmp_path / "movies.csv").write_text(movies)
    (tmp_path / "ratings.csv").write_text(ratings)
    with pytest.raises(DataError, match=where):
        load_dataset("ml-latest-small", tmp_path)


def ml_100k(folder: Path) -> Path:
    flags = "|".join(["0"] * 5 + ["1"] + ["0"] * 13)
    (folder / "u.data").write_text("196\t242\t3\t881250949\n186\t267\t4\t891717742\n")
    (folder / "u.item").write_bytes(
        f"242|Kolya (1996)|24-Jan-1997||http://x|{flags}\n267|unknown||||1|{'|'.join('0' * 18)}\n".encode("latin-1")
    )
    (folder / "u.user").write_text("186|39|F|executive|00000\n196|49|M|writer|55105\n")
    return folder


def test_ml_100k_is_read_in_its_own_format(tmp_path: Path) -> None:
    dataset = load_dataset("ml-100k", ml_100k(tmp_path))
    assert dataset.user_ids.tolist() == [186, 196]
    assert dataset.user(1).demographics == {"gender": "male", "age": "49", "occupation": "writer"}
    assert dataset.items[0].attributes == {"year": "1996", "genres": "Comedy"}
    assert dataset.items[1].title == "Untitled item 267"


def test_a_malformed_ml_100k_is_an_error_that_names_file_and_line(tmp_path: Path) -> None:
    (ml_100k(tmp_path) / "u.item").write_text("242|Kolya (1996)|24-Jan-1997\n")
    with pytest.raises(DataError, match=r"u\.item, line 1"):
        load_dataset("ml-100k", tmp_path)


def zipped(tmp_path: Path, *extra: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    place = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in {"ratings.dat": RATINGS, "movies.dat": MOVIES, "users.dat": USERS}.items():
            archive.writestr(f"ml-1m/{file}", text.encode("latin-1"))
        archive.writestr("__MACOSX/ml-1m/._ratings.dat", b"junk")
        for name, content in extra:
            archive.writestr(name, content)
    return place


def test_a_zip_gives_what_its_folder_gives(tmp_path: Path) -> None:
    inner = tmp_path / "ml-1m"
    inner.mkdir()
    ml_1m(inner)
    hashes = {load_dataset("ml-1m", place).hash for place in (zipped(tmp_path), inner, tmp_path)}
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil", "ml-1m/../../evil", "C:\\evil", "a\\..\\evil"])
def test_a_zip_whose_members_point_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="points outside"):
        load_dataset("ml-1m", zipped(tmp_path, (name, b"x")))


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("ml-1m/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match="is a link"):
        load_dataset("ml-1m", zipped(tmp_path, (link, b"/etc/passwd")))


def test_a_zip_with_two_files_of_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two files named ratings\.dat"):
        load_dataset("ml-1m", zipped(tmp_path, ("other/ratings.dat", b"1::10::5::1\n")))


def test_a_zip_member_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    place = tmp_path / "bomb.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ratings.dat", b"0" * 20_000_000)
        archive.writestr("movies.dat", MOVIES.encode("latin-1"))
    with pytest.raises(DataError, match="absurd size"):
        load_dataset("ml-1m", place)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_zip_cut_short_is_an_error_that_says_so(tmp_path: Path, keep: float) -> None:
    place = zipped(tmp_path)
    raw = place.read_bytes()
    place.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(DataError, match="not a whole zip"):
        load_dataset("ml-1m", place)


def test_a_zip_damaged_within_is_never_read_as_data(tmp_path: Path) -> None:
    place = zipped(tmp_path)
    raw = bytearray(place.read_bytes())
    at = raw.index(b"ratings.dat") + len(b"ratings.dat") + 4
    raw[at] ^= 0xFF
    place.write_bytes(raw)
    with pytest.raises(DataError, match="not a whole zip"):
        load_dataset("ml-1m", place)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'ml-1m'"):
        load_dataset("ml-1n")


def test_without_files_the_error_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAREC_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="starec data fetch ml-1m"):
        load_dataset("ml-1m")
    with pytest.raises(DataError, match="path="):
        load_dataset("amazon")


def test_the_domain_can_be_named(tmp_path: Path) -> None:
    assert load_dataset("ml-1m", ml_1m(tmp_path), domain="film").domain == "film"


def test_a_user_file_that_repeats_an_id_keeps_the_first_and_says_so(tmp_path: Path) -> None:
    dataset = load_dataset("ml-1m", ml_1m(tmp_path, users=USERS + "1::M::1::10::48067\n"))
    assert dataset.user(0).demographics["gender"] == "female"
    assert "rows of the user file that repeat an id, the first kept: 1" in dataset.notes


def test_a_member_of_a_zip_may_be_gzipped_and_its_sizes_are_bounded_together(tmp_path: Path) -> None:
    plain = load_dataset("ml-1m", zipped(tmp_path)).hash
    place = tmp_path / "packed.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("ratings.dat.gz", gzip.compress(RATINGS.encode()))
        archive.writestr("movies.dat", gzip.compress(MOVIES.encode("latin-1")))
        archive.writestr("users.dat", USERS)
    assert load_dataset("ml-1m", place).hash == plain
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("ratings.dat", gzip.compress(bytes(1 << 24)))
        archive.writestr("movies.dat", MOVIES.encode("latin-1"))
    with pytest.raises(DataError, match=r"ratings\.dat: its gzip stream holds more"):
        load_dataset("ml-1m", place)


def test_a_file_too_large_for_memory_is_refused_unread(tmp_path: Path) -> None:
    with (ml_1m(tmp_path) / "ratings.dat").open("r+b") as file:
        file.truncate(1 << 40)  # a hole, which takes no room
    with pytest.raises(DataError, match=r"ratings\.dat: more than .* bytes"):
        load_dataset("ml-1m", tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=9))
def test_a_mangled_zip_loads_or_is_an_error_of_ours(at: int, piece: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = zipped(Path(folder))
        raw = bytearray(place.read_bytes())
        raw[at % len(raw) : at % len(raw) + len(piece)] = piece
        place.write_bytes(raw)
        with suppress(StarecError):
            assert load_dataset("ml-1m", place).n_interactions > 0


@pytest.mark.parametrize(
    "times",
    [
        ("1600000000000002", "1600000000000001"),
        ("1600000000000000002", "1600000000000000001"),
        ("1600000000.5", "1600000000.25"),
        ("1600000000002", "1600000000001"),
    ],
)
def test_times_of_any_unit_order_rows_and_fields_may_be_quoted(tmp_path: Path, times: tuple[str, str]) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A,X\n2,B,Y\n")
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n7,1,4.0,{times[0]}\n7,2,3.0,{times[1]}\n")
    dataset = load_dataset("ml-latest-small", tmp_path)
    assert dataset.item_indices.tolist() == [1, 0]
    assert dataset.timestamps.tolist() == [1_600_000_000] * 2
    (tmp_path / "ratings.csv").write_text('userId,movieId,rating,timestamp\n"7","1","4.0","9"\n"7","2","3.0","8"\n')
    assert load_dataset("ml-latest-small", tmp_path).item_indices.tolist() == [1, 0]

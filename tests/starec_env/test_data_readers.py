"""What one reader takes, all take: each kind of file, fault and bad row, tried on every file of every format."""

import gzip
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starec_env import load_dataset
from starec_env.data.files import byte_lines
from starec_env.data.rows import BadRows, csv_rows, finite, json_rows, text_id
from starec_env.data.table import read_table
from starec_env.errors import DataError, StarecError
from starec_env.types import Dataset

N = 200
FLAGS = "|".join(["0"] * 5 + ["1"] + ["0"] * 13)


def joined(lines: list[str], header: str = "") -> bytes:
    return "".join(f"{line}\n" for line in ([header] if header else []) + lines).encode()


def pairs() -> list[tuple[int, int, int]]:
    """200 (user, item, time), in an order of items that isn't theirs."""
    return [(1 + row // 10, 1 + 7 * row % N, 1_000_000_000 + row) for row in range(N)]


FORMATS: dict[str, dict[str, bytes]] = {
    "ml-1m": {
        "ratings.dat": joined([f"{u}::{i}::4::{t}" for u, i, t in pairs()]),
        "movies.dat": joined([f"{i}::Film {i} (1995)::Drama|Comedy" for i in range(1, N + 1)]),
        "users.dat": joined([f"{u}::F::25::7::12345" for u in range(1, N + 1)]),
    },
    "ml-100k": {
        "u.data": joined([f"{u}\t{i}\t4\t{t}" for u, i, t in pairs()]),
        "u.item": joined([f"{i}|Film {i} (1995)|01-Jan-1995||http://x|{FLAGS}" for i in range(1, N + 1)]),
        "u.user": joined([f"{u}|30|F|writer|12345" for u in range(1, N + 1)]),
    },
    "ml-latest-small": {
        "ratings.csv": joined([f"{u},{i},4.5,{t}" for u, i, t in pairs()], "userId,movieId,rating,timestamp"),
        "movies.csv": joined([f'{i},"Film, {i} (1995)",Drama' for i in range(1, N + 1)], "movieId,title,genres"),
    },
    "amazon": {
        "CDs_5.json": joined(
            [
                json.dumps({"reviewerID": f"U{u}", "asin": f"B{i}", "overall": 4, "unixReviewTime": t})
                for u, i, t in pairs()
            ]
        ),
        "meta_CDs.json": joined([json.dumps({"asin": f"B{i}", "title": f"Disc {i}"}) for i in range(1, N + 1)]),
    },
    "amazon-cds-2023": {
        "CDs.csv": joined([f"U{u},B{i},4.0,{t}123" for u, i, t in pairs()], "user_id,parent_asin,rating,timestamp"),
        "meta_CDs.jsonl": joined([json.dumps({"parent_asin": f"B{i}", "title": f"Disc {i}"}) for i in range(1, N + 1)]),
    },
    "recbole": {
        "x.inter": joined(
            [f"{u}\t{i}\t4\t{t}" for u, i, t in pairs()],
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        ),
        "x.item": joined([f"{i}\tFilm {i}" for i in range(1, N + 1)], "item_id:token\ttitle:token_seq"),
        "x.user": joined([f"{u}\t30" for u in range(1, N + 1)], "user_id:token\tage:token"),
    },
    "own csv": {
        "own.csv": joined([f"{u};{i};4;{t}" for u, i, t in pairs()], "user;item;rating;time"),
        "items.csv": joined([f'{i},"Film, {i}",Drama' for i in range(1, N + 1)], "item,title,genre"),
    },
    "own json": {
        "own.jsonl": joined([json.dumps({"user": u, "item": i, "rating": 4, "time": t}) for u, i, t in pairs()]),
        "items.jsonl": joined([json.dumps({"item": i, "title": f"Film {i}"}) for i in range(1, N + 1)]),
    },
}
"""Of each format a small data set: its files, each of 200 rows."""

FILES = [(name, file) for name, files in FORMATS.items() for file in files]
BAD_ROWS = {
    "ratings.dat": ["x::2::4::5", "1::2::4", "1_0::2::4::5", "2::９::4::5", "1::2::nan::5", f"{10**30}::2::4::5"],
    "movies.dat": [
        "x::Up::Drama",
        "1::Up",
        "1_0::Up::Drama",
        "９::Up::Drama",
        f"{10**30}::Up::Drama",
        "007::Up::Drama",
    ],
    "users.dat": ["x::F::25::7::1", "1::F", "900::F::25::-1::1", "900::F::25::1_0::1", "900::X::25::7::1"],
    "u.data": ["x\t2\t4\t5", "1\t2\t4", "1_0\t2\t4\t5", "1\t2\tinf\t5", f"{10**30}\t2\t4\t5"],
    "u.item": [f"x|Up|||{FLAGS}", "1|Up", f"1_0|Up||||{FLAGS}", f"{10**30}|Up||||{FLAGS}"],
    "u.user": ["x|30|F|writer|1", "900|30", "1_0|30|F|writer|1"],
    "ratings.csv": ["x,2,4,5", "1,2,4", "1_0,2,4,5", "1,２,4,5", "1,2,nan,5", f"1,{10**30},4,5"],
    "movies.csv": ["x,Up,Drama", "900,Up", "1_0,Up,Drama", "２,Up,Drama", '900,"Up,Drama', '900,"Up" and,Drama'],
    "CDs_5.json": [
        '{"reviewerID": "A", "asin',
        "[1, 2]",
        "NaN",
        '{"a":' * 9000 + "1" + "}" * 9000,
        "{'a': " + "[" * 9000 + "]" * 9000 + "}",
        "{'a': " + "-" * 9000 + "1}",
        "{'reviewerID': 0x" + "f" * 5000 + ", 'asin': 'B1', 'overall': 4, 'unixReviewTime': 5}",
        '{"reviewerID": {"a": 1}, "asin": "B1", "overall": 4, "unixReviewTime": 5}',
        '{"reviewerID": "A", "asin": ["B1"], "overall": 4, "unixReviewTime": 5}',
        '{"reviewerID": "A\\ud83d", "asin": "B1", "overall": 4, "unixReviewTime": 5}',
        '{"reviewerID": "A\\u0000", "asin": "B1", "overall": 4, "unixReviewTime": 5}',
        '{"reviewerID": true, "asin": "B1", "overall": 4, "unixReviewTime": 5}',
        '{"reviewerID": "A", "asin": "B1", "overall": true, "unixReviewTime": 5}',
        '{"reviewerID": "A", "asin": "B1", "overall": NaN, "unixReviewTime": 5}',
        '{"reviewerID": "A", "asin": "B1", "overall": ' + "9" * 400 + ', "unixReviewTime": 5}',
        '{"reviewerID": "A", "asin": "B1", "overall": 4, "unixReviewTime": ' + "9" * 400 + "}",
        '{"reviewerID": "A", "asin": "B1", "overall": 4, "unixReviewTime": true}',
        '{"reviewerID": "A", "asin": "B1", "overall": 4, "unixReviewTime": Infinity}',
        '{"reviewerID": "A", "asin": "B1", "overall": "four", "unixReviewTime": 5}',
        '{"reviewerID": "A", "asin": "B1", "overall": "1_0", "unixReviewTime": 5}',
    ],
    "meta_CDs.json": ["{", '"B1"', '{"asin": ["B1"], "title": "t"}', '{"asin": {"a": 1}}', '{"asin": "B\\ud83d"}'],
    "CDs.csv": ["A,B1,4.0", "A,B1,nan,5", "A,B1,1_0,5", "A,B1,4,noon", 'A,"B1,4,5', "A,B1,4,1e300"],
    "meta_CDs.jsonl": ["{", '{"parent_asin": ["B1"]}'],
    "x.inter": ["1\t2\t4", "\t2\t4\t5", "1\t\t4\t5", "1\t2\tnan\t5", "1\t2\t1_0\t5", "1\t2\t4\tnoon", "1\t2\t4\t1e300"],
    "x.item": ["\tUp", "900"],
    "x.user": ["\t30", "900"],
    "own.csv": ["1;2;4", ";2;4;5", "1;2;nan;5", "1;2;1_0;5", "1;2;4;noon", '1;"2;4;5'],
    "items.csv": [",Up,Drama", "900,Up", '900,"Up,Drama'],
    "own.jsonl": ["{", '{"user": [1], "item": 2, "rating": 4, "time": 5}', '{"user": 1, "item": 2, "rating": NaN}'],
    "items.jsonl": ["{", '{"item": {"a": 1}, "title": "t"}'],
}
"""Rows that can't be read, by file."""


def written(folder: Path, name: str, changed: dict[str, bytes] | None = None) -> Path:
    for file, content in {**FORMATS[name], **(changed or {})}.items():
        (folder / file).write_bytes(content)
    return folder


def load(name: str, folder: Path, domain: str | None = None) -> Dataset:
    if not name.startswith("own"):
        return load_dataset(name, folder, domain=domain)
    rows, items = (next(file for file in sorted(folder.iterdir()) if file.name.startswith(n)) for n in ("own", "items"))
    return read_table(rows, items=items, domain=domain)


def content(dataset: Dataset) -> tuple[object, ...]:
    """All that a data set holds, for comparing."""
    return (
        dataset.items,
        dataset.user_ids.tolist(),
        dataset.indptr.tolist(),
        dataset.item_indices.tolist(),
        dataset.ratings.tolist(),
        dataset.timestamps.tolist(),
        dataset.demographics,
    )


def crc_damaged(raw: bytes) -> bytes:
    packed = bytearray(gzip.compress(raw))
    packed[-7] ^= 0xFF
    return bytes(packed)


def halves(raw: bytes) -> tuple[bytes, bytes]:
    return raw[: len(raw) // 2], raw[len(raw) // 2 :]


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "byte order marks within": lambda raw: raw.replace(b"\n", b"\n\xef\xbb\xbf", 3),
    "line ends of Windows": lambda raw: raw.replace(b"\n", b"\r\n"),
    "line ends of old Macs": lambda raw: raw.replace(b"\n", b"\r"),
    "blank lines": lambda raw: raw.replace(b"\n", b"\n\n", 3).replace(b"\n\n", b"\n \n", 1) + b"\n\r\n",
    "blank lines before all others": lambda raw: b"\n \n" + raw,
    "no last line end": lambda raw: raw.rstrip(b"\n"),
    "gzip under a plain name": gzip.compress,
    "gzip of several members": lambda raw: b"".join(map(gzip.compress, halves(raw))),
    "gzip with a byte order mark": lambda raw: gzip.compress(b"\xef\xbb\xbf" + raw),
    "gzip of lines of old Macs": lambda raw: gzip.compress(raw.replace(b"\n", b"\r")),
}
HARMFUL: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a gzip cut short": (lambda raw: gzip.compress(raw)[:-12], "cut short or damaged"),
    "a gzip without its checksum": (lambda raw: gzip.compress(raw)[:-8], "cut short or damaged"),
    "a gzip with a wrong checksum": (crc_damaged, "cut short or damaged"),
    "a gzip with junk after it": (lambda raw: gzip.compress(raw) + b"junk", "cut short or damaged"),
    "nothing": (lambda raw: b"", "the file is empty"),
    "nothing in a gzip": (lambda raw: gzip.compress(b""), "the file is empty"),
    "blank lines alone": (lambda raw: b"\n \n\r\n", "the file is empty"),
    "UTF-16": (lambda raw: raw.decode().encode("utf-16"), "UTF-16 or binary"),
    "zeros in a gzip": (lambda raw: gzip.compress(bytes(1 << 12)), "UTF-16 or binary"),
    "a gzip bomb": (lambda raw: gzip.compress(raw + raw[-5:-1] * (1 << 20)), "absurd size"),
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_every_reader_takes_every_file(tmp_path: Path, name: str, file: str, kind: str) -> None:
    plain = content(load(name, written(tmp_path, name), domain="thing"))
    changed = {file: HARMLESS[kind](FORMATS[name][file])}
    assert content(load(name, written(tmp_path, name, changed), domain="thing")) == plain


@pytest.mark.parametrize(("name", "file"), FILES)
def test_every_reader_finds_a_file_with_gz_after_its_name(tmp_path: Path, name: str, file: str) -> None:
    plain = content(load(name, written(tmp_path, name)))
    (tmp_path / file).unlink()
    (tmp_path / f"{file}.gz").write_bytes(gzip.compress(FORMATS[name][file]))
    assert content(load(name, tmp_path)) == plain
    (tmp_path / f"{file}.gz").write_bytes(FORMATS[name][file])  # not even gzipped
    assert content(load(name, tmp_path)) == plain


@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_every_reader_says_what_is_wrong_with_a_file(tmp_path: Path, name: str, file: str, kind: str) -> None:
    damage, why = HARMFUL[kind]
    with pytest.raises(DataError, match=why) as caught:
        load(name, written(tmp_path, name, {file: damage(FORMATS[name][file])}))
    assert file in str(caught.value)


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device", "a socket", "a loop"])
@pytest.mark.parametrize(("name", "file"), FILES)
def test_no_reader_opens_what_is_no_regular_file(tmp_path: Path, name: str, file: str, kind: str) -> None:
    place = written(tmp_path, name) / file
    place.unlink()
    if kind == "a named pipe":
        os.mkfifo(place)
    elif kind == "a folder":
        place.mkdir()
    elif kind == "a device":
        place.symlink_to("/dev/zero")
    elif kind == "a loop":
        place.symlink_to(place.name)
    else:
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as open_socket:
            open_socket.bind(f"{short}/s")  # a socket's path must be short
            os.rename(f"{short}/s", place)
    with pytest.raises(DataError, match=f"{file}: (is {kind}; wanted|can't be read: .*symbolic links)"):
        load(name, tmp_path)


def open_path(name: str, path: Path) -> Dataset:
    return read_table(path) if name.startswith("own") else load_dataset(name, path)


@pytest.mark.parametrize("name", FORMATS)
def test_no_reader_opens_a_path_that_is_no_file_or_folder(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, why in (("pipe", "is a named pipe"), ("none", "no such file or folder"), ("loop", "can't be read")):
        with pytest.raises(DataError, match=why):
            open_path(name, tmp_path / path)
    with pytest.raises(DataError, match="can't be read"):
        open_path(name, Path("a\0b"))


def with_row(raw: bytes, row: bytes, times: int = 1) -> bytes:
    """The file with the row after its first hundred lines, as often as that."""
    lines = raw.splitlines(keepends=True)
    return b"".join(lines[:100] + [row + b"\n"] * times + lines[100:])


def bad_rows() -> list[tuple[str, str, bytes]]:
    """Every (format, file, bad row), with a row of bytes that are no UTF-8 and one with NUL where they must be text."""
    found = [(name, file, row.encode()) for name, file in FILES for row in BAD_ROWS[file]]
    other = (".dat", ".json", ".jsonl", ".data", "items.csv")  # where such bytes are shown as U+FFFD, or are latin-1
    texts = [(name, file) for name, file in FILES if not file.endswith(other)]
    for name, file in texts:
        row = FORMATS[name][file].splitlines()[-1]
        found += [(name, file, row + b"\0")] + ([] if file.startswith("u.") else [(name, file, row + b"\xe9")])
    return found


@pytest.mark.parametrize(("name", "file", "row"), bad_rows(), ids=lambda value: str(value)[:40])
def test_a_bad_row_is_left_out_counted_and_shown_with_its_line(
    tmp_path: Path, name: str, file: str, row: bytes
) -> None:
    plain = content(load(name, written(tmp_path, name)))
    dataset = load(name, written(tmp_path, name, {file: with_row(FORMATS[name][file], row)}))
    assert content(dataset) == plain
    (note,) = [note for note in dataset.notes if "could not be read" in note]
    assert (
        note.startswith("1 of 201 rows of ") and f"{file} could not be read and were left out, first line 101" in note
    )
    assert len(note) < 500


@pytest.mark.parametrize(("name", "file"), FILES)
def test_more_than_one_bad_row_of_a_hundred_is_an_error_that_shows_the_first(
    tmp_path: Path, name: str, file: str
) -> None:
    row = BAD_ROWS[file][0].encode()
    load(name, written(tmp_path, name, {file: with_row(FORMATS[name][file], row, 2)}))
    with pytest.raises(DataError, match=rf"{file}, line 101: got .*3 of 203 rows"):
        load(name, written(tmp_path, name, {file: with_row(FORMATS[name][file], row, 3)}))


@pytest.mark.parametrize(
    ("name", "file", "header"),
    [
        ("ml-latest-small", "ratings.csv", b"user,movie,rating,timestamp"),
        ("ml-latest-small", "movies.csv", b"id,title,genres"),
        ("amazon-cds-2023", "CDs.csv", b"user,item,rating,timestamp"),
        ("recbole", "x.inter", b"user_id\titem_id"),
        ("recbole", "x.inter", b"user_id:token\tproduct:token"),
        ("recbole", "x.inter", b"user_id:token\titem_id:token\titem_id:token"),
        ("recbole", "x.item", b"id:token\ttitle:token_seq"),
        ("recbole", "x.user", b"id:token\tage:token"),
    ],
)
def test_a_bad_header_is_an_error_whatever_follows(tmp_path: Path, name: str, file: str, header: bytes) -> None:
    rest = FORMATS[name][file].split(b"\n", 1)[1]
    with pytest.raises(DataError, match=f"{file}, line 1: got "):
        load(name, written(tmp_path, name, {file: header + b"\n" + rest}))


@pytest.mark.parametrize("file", ["CDs_5.json", "meta_CDs.json"])
@pytest.mark.parametrize(
    "extra",
    [
        b'"text": "half \\ud83d"',
        b'"text": "raw\ttab and \x07"',
        b'"text": "caf\xe9"',
        b'"text": NaN, "more": -Infinity',
        b'"text": 1, "text": 2',
        b'"text": ' + b"9" * 400,
        b'"text": ' + b"[" * 300 + b"]" * 300,
        b'"text": "' + b"x" * (10 << 20) + b'"',
    ],
    ids=["half a pair", "control characters", "latin-1", "no finite number", "key twice", "long int", "deep", "10 MB"],
)
def test_json_lines_are_read_as_writers_write_them(tmp_path: Path, file: str, extra: bytes) -> None:
    plain = content(load_dataset("amazon", written(tmp_path, "amazon")))
    changed = FORMATS["amazon"][file].replace(b"}\n", b", " + extra + b"}\n", 1)
    dataset = load_dataset("amazon", written(tmp_path, "amazon", {file: changed}))
    assert content(dataset) == plain
    assert not any("could not be read" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("name", "file", "field"),
    [("recbole", "x.inter", b"\tnote:token_seq"), ("amazon-cds-2023", "CDs.csv", b",history")],
)
def test_odd_bytes_in_a_field_that_is_not_used_do_no_harm(tmp_path: Path, name: str, file: str, field: bytes) -> None:
    plain = content(load(name, written(tmp_path, name)))
    header, *rows = FORMATS[name][file].splitlines()
    more = [row + field[:1] + b"caf\xe9 \0" for row in rows]
    dataset = load(name, written(tmp_path, name, {file: b"\n".join([header + field, *more])}))
    assert content(dataset) == plain
    assert not any("could not be read" in note for note in dataset.notes)


def test_half_a_character_in_a_title_is_shown_as_the_replacement_and_a_pair_as_the_character(tmp_path: Path) -> None:
    meta = b'{"asin": "B1", "title": "Half \\ud83d"}\n{"asin": "B2", "title": "Whole \\ud83d\\ude00 caf\xe9"}\n'
    python = b"{'asin': 'B3', 'title': 'Python \\ud83d\\ude00'}\n"
    dataset = load_dataset("amazon", written(tmp_path, "amazon", {"meta_CDs.json": meta + python}))
    titles = [dataset.items[dataset.item_index(i)].title for i in ("B1", "B2", "B3")]
    assert titles == ["Half \ufffd", "Whole \U0001f600 caf\ufffd", "Python \U0001f600"]
    assert any("items with half characters" in note for note in dataset.notes)


def test_blank_lines_that_go_on_and_lines_without_end_are_given_up(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"a\n" + (b" " * (1 << 20) + b"\n") * 17)
    with pytest.raises(DataError, match="nothing but blank lines"):
        list(byte_lines(place))
    place.write_bytes(gzip.compress(b"a\n" + b"\n" * (1 << 20)))
    with pytest.raises(DataError, match="absurd size"):
        list(byte_lines(place))
    with place.open("wb") as file:
        file.write(b"a\n")
        file.truncate(65 << 20)  # a hole, read as zeros
    with pytest.raises(DataError, match="line 1|line 2"):
        list(byte_lines(place))


def test_lines_have_the_numbers_of_their_file_and_no_ends() -> None:
    assert list(byte_lines(b"\xef\xbb\xbfa\r\n\r\n b \n\xff", "x")) == [(1, b"a"), (3, b" b "), (4, b"\xff")]
    assert list(byte_lines(b"a\r\rb\r", "x")) == [(1, b"a"), (3, b"b")]


def test_an_open_quote_takes_no_other_rows_with_it() -> None:
    bad = BadRows("x.csv")
    lines = [b'1,"two', b'lines"', b'2,"never closed', *(b'%d,"closed"' % n for n in range(3, 2000))]
    rows = list(csv_rows(enumerate(lines, 1), ["a", "b"], bad))
    assert rows[0] == (1, ["1", "two\nlines"])
    assert [int(row[0]) for _, row in rows] == [1, *range(3, 2000)]
    (note,) = bad.notes()
    assert note.startswith("1 of 1,999 rows of x.csv could not be read and were left out, first line 3: got '2,\"never")


def test_a_file_of_another_format_is_given_up_early() -> None:
    bad = BadRows("x")
    with pytest.raises(DataError, match="1,000 of 1,000 rows"):
        list(json_rows(((n, b"no") for n in range(1, 10**9)), "an object", bad))


@pytest.mark.parametrize(
    "value",
    [None, "", " \t", True, 1.0, ["a"], {"a": 1}, "a\0", "\ud83d", "a\ufffd", pytest.param(10**5000, id="huge")],
)
def test_what_is_no_id_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        text_id(value)


@pytest.mark.parametrize("value", [None, "", True, "1_0", "４", "nan", "inf", float("nan"), "1e999", [1], "0x10"])
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        finite(value)


mangled = st.tuples(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=6)), min_size=1, max_size=4),
    st.sampled_from([bytes, gzip.compress]),
    st.floats(0.02, 1),
)


@settings(max_examples=150, deadline=None)
@given(mangled)
def test_a_mangled_file_loads_or_is_an_error_of_ours(
    case: tuple[tuple[str, str], list[tuple[float, int, bytes]], Callable[[bytes], bytes], float],
) -> None:
    (name, file), cuts, packed, keep = case
    raw = FORMATS[name][file]
    raw = bytearray(packed(raw[: int(len(raw) * keep)]))
    for at, length, piece in cuts:
        start = int(at * len(raw))
        raw[start : start + length] = piece
    with tempfile.TemporaryDirectory() as folder:
        try:
            dataset = load(name, written(Path(folder), name, {file: bytes(raw)}))
        except StarecError as error:
            assert len(str(error)) < 2000
            return
    assert np.isfinite(dataset.ratings).all() and all(item.title for item in dataset.items)
    assert ((dataset.item_indices >= 0) & (dataset.item_indices < dataset.n_items)).all()


@pytest.mark.parametrize("value", ["3.5e38", 1e39, -(10**60), "nan", float("inf")])
def test_a_rating_that_float32_cannot_hold_is_no_number(value: object) -> None:
    with pytest.raises((ValueError, OverflowError)):
        finite(value)
    assert finite("3.4e38") == 3.4e38


def test_a_column_named_for_a_file_without_any_is_refused_in_words(tmp_path: Path) -> None:
    place = tmp_path / "own.jsonl"
    place.write_text("{}\n")
    with pytest.raises(DataError, match="there is no column 'reader'"):
        read_table(place, columns={"user": "reader"})

"""Downloads, against a real HTTP server on loopback."""

import gzip
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest
from click.testing import CliRunner

from starec_env import load_dataset
from starec_env.data import cache_dir
from starec_env.data.commands import data
from starec_env.data.fetch import REMOTES, Redirects, download, fetch
from starec_env.errors import DataError, InvalidOption, UnknownName

BODY = b"0123456789" * 100_000
PACKED = gzip.compress(bytes(range(256)) * 100)
REDIRECTS = {
    "/to-ftp": "ftp://127.0.0.1/good",
    "/to-file": "file:///etc/hostname",
    "/to-good": "/good",
    "/round": "/round",
}
ANSWERS: dict[str, tuple[int, bytes, int | None]] = {
    "/short": (200, BODY[:1234], len(BODY)),
    "/part": (206, BODY[:1234], 1234),
    "/empty": (204, b"", None),
    "/long": (200, b"", 1 << 50),
    "/unsized": (200, BODY, None),
    "/unsized.gz": (200, PACKED, None),
    "/cut.gz": (200, PACKED[:-9], None),
    "/cut-sized.gz": (200, PACKED[:-9], len(PACKED) - 9),
    "/login.gz": (200, b"<html>please log in</html>", 26),
}
"""Paths with their status, body and announced length."""


class Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}

    def do_GET(self) -> None:  # noqa: N802
        if self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path])
            self.end_headers()
        elif self.path == "/endless":
            self.answer(200, b"", None)
            self.pour(BODY, 0.0)
        elif self.path == "/drip":
            self.answer(200, b"", len(BODY))
            self.pour(b"1", 0.01)
        elif self.path == "/drip-headers":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            self.pour(b"1", 0.01)
        elif self.path in self.files:
            self.answer(200, self.files[self.path], len(self.files[self.path]))
        elif self.path in ANSWERS:
            self.answer(*ANSWERS[self.path])
        else:
            self.send_error(404)

    def answer(self, status: int, body: bytes, length: int | None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def pour(self, piece: bytes, pause: float) -> None:
        """Send a piece again and again, until the other side hangs up."""
        with suppress(OSError):
            while True:
                self.wfile.write(piece)
                time.sleep(pause)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STAREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Handler, "files", {"/good": BODY})
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_download_is_verified_and_kept(server: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "good"
    sha256 = download(f"{server}/good", target, hashlib.md5(BODY).hexdigest())
    assert target.read_bytes() == BODY
    assert sha256 == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize(
    ("path", "md5", "why"),
    [
        ("/good", "0" * 32, "has md5 [0-9a-f]{32}, published is 000"),
        ("/short", None, "cut off after 1,234"),
        ("/missing", None, r"can't be downloaded \(404 Not Found\).* by hand"),
        ("/part", None, r"can't be downloaded \(it answers 206"),
        ("/empty", None, r"can't be downloaded \(it answers 204"),
        ("/to-ftp", None, "redirects to ftp://127.0.0.1/good"),
        ("/to-file", None, "302 .*file:///etc/hostname.* is not allowed"),
        ("/round", None, "302 .*infinite loop"),
        ("/long", None, "sends more than 8,589,934,592 bytes"),
        ("/unsized", None, "doesn't say how long the file is"),
        ("/cut.gz", None, "cut.gz: not a whole gzip file"),
        ("/cut-sized.gz", None, "not a whole gzip file"),
        ("/login.gz", None, "not a whole gzip file .*login page"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(
    server: str, tmp_path: Path, path: str, md5: str | None, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        download(server + path, tmp_path / "down" / path[1:], md5)
    assert list((tmp_path / "down").iterdir()) == []


def test_a_download_that_never_ends_is_left_at_its_limit(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sends more than 5,000,000 bytes"):
        download(f"{server}/endless", tmp_path / "down" / "file.gz", most=5_000_000)
    assert list((tmp_path / "down").iterdir()) == []


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_a_download_of_a_byte_now_and_then_is_given_up(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("starec_env.data.fetch._WINDOW_S", 0.1)
    with pytest.raises(DataError, match="slower than 1,024 bytes a second"):
        download(server + path, tmp_path / "down" / "file")
    assert list((tmp_path / "down").iterdir()) == []


def test_a_whole_gzip_file_is_kept_though_its_length_was_not_said(server: str, tmp_path: Path) -> None:
    download(f"{server}/unsized.gz", tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == PACKED


def test_redirects_are_followed_among_http_addresses_alone(server: str, tmp_path: Path) -> None:
    download(f"{server}/to-good", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    with pytest.raises(URLError, match="no https address"):
        Redirects().redirect_request(Request("https://a/x"), None, 302, "Found", {}, "http://a/x")
    with pytest.raises(URLError, match="ftp://a/x"):
        Redirects().redirect_request(Request("http://a/x"), None, 302, "Found", {}, "ftp://a/x")


def test_what_a_killed_fetch_left_behind_is_removed_and_what_is_being_written_stays(server: str) -> None:
    amazon(server)
    folder = cache_dir() / "datasets" / "amazon-cds-2023"
    folder.mkdir(parents=True)
    stale, alive = (folder / f".CDs_and_Vinyl.csv.gz.{name}.part" for name in ("stale", "alive"))
    for partial in (stale, alive):
        partial.write_bytes(b"x")
    os.utime(stale, (0, 0))
    fetch("amazon-cds-2023", mirror=server, report=lambda line: None)
    assert alive.exists() and not stale.exists()


def test_offline_the_error_says_what_to_download_and_where_to_put_it(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"download http://127\.0\.0\.1:1/x by hand and put it at .*file") as caught:
        download("http://127.0.0.1:1/x", tmp_path / "file")
    assert "path=" in str(caught.value)


def test_other_schemes_than_http_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="https://"):
        download("file:///etc/passwd", tmp_path / "file")


def test_a_cache_folder_that_cannot_be_written_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with pytest.raises(DataError, match="STAREC_CACHE"):
        download(f"{server}/good", tmp_path / "blocked" / "file")


def amazon(server: str) -> None:
    meta, reviews = (remote.url.split("/", 3)[3] for remote in REMOTES["amazon-cds-2023"])
    rows = b"user_id,parent_asin,rating,timestamp\nU,P,5.0,1600000000000\n"
    Handler.files[f"/{meta}"] = gzip.compress(b'{"parent_asin": "P", "title": "Nevermind"}\n')
    Handler.files[f"/{reviews}"] = gzip.compress(rows)


def test_what_is_fetched_is_found_by_name(server: str) -> None:
    amazon(server)
    said: list[str] = []
    fetch("amazon-cds-2023", mirror=server, report=said.append)
    dataset = load_dataset("amazon-cds-2023")
    assert (dataset.items[0].title, dataset.domain) == ("Nevermind", "music")
    assert len(said) == 2 and all("no checksum is published; sha256" in line for line in said)
    Handler.files.clear()
    fetch("amazon-cds-2023", mirror=server, report=said.append)
    assert "there already" in said[-1]


def test_an_archive_that_is_not_the_published_one_is_refused(server: str) -> None:
    Handler.files["/datasets/movielens/ml-1m.zip"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match="c4d9eecfca2ab87c1945afe126590906"):
        fetch("ml-1m", mirror=server)
    assert not (cache_dir() / "datasets" / "ml-1m" / "ml-1m.zip").exists()


def test_a_damaged_archive_put_there_by_hand_is_noticed(server: str) -> None:
    place = cache_dir() / "datasets" / "ml-100k" / "ml-100k.zip"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half")
    with pytest.raises(DataError, match="0e33842e24a9c977be4e0107933c0723"):
        fetch("ml-100k", mirror=server)


def test_names_without_files_to_fetch_say_so() -> None:
    assert fetch("ml-latest-small").name == "ml-latest-small.zip"
    with pytest.raises(DataError, match="is a format"):
        fetch("amazon")
    with pytest.raises(UnknownName, match="did you mean"):
        fetch("ml-1k")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAREC_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("STAREC_CACHE")
    assert cache_dir().is_absolute() and "starec" in cache_dir().parts


def test_the_list_says_where_each_data_set_is(server: str) -> None:
    amazon(server)
    CliRunner().invoke(data, ["fetch", "amazon-cds-2023", "--mirror", server], catch_exceptions=False)
    text = CliRunner().invoke(data, ["list"], catch_exceptions=False).output
    assert "bundled: " in text
    assert "not here: starec data fetch ml-1m" in text
    assert f"here: {cache_dir() / 'datasets' / 'amazon-cds-2023'}" in text


def test_check_prints_the_counts_of_table_3_and_the_notes() -> None:
    text = CliRunner().invoke(data, ["check", "ml-latest-small"], catch_exceptions=False).output
    assert "671     9,066       100,004    98.36%" in text
    assert "5 items have no title" in text
    assert "670     2,245        81,906    94.55%" in text


def test_the_examples_of_the_help_name_real_data_sets() -> None:
    for command in ("list", "fetch", "check"):
        text = CliRunner().invoke(data, [command, "--help"]).output
        assert f"starec data {command}" in text

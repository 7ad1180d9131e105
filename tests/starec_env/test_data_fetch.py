"""Downloads, against a real HTTP server on loopback."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from starec_env import load_dataset
from starec_env.data import cache_dir
from starec_env.data.commands import data
from starec_env.data.fetch import REMOTES, download, fetch
from starec_env.errors import DataError, InvalidOption, UnknownName

BODY = b"0123456789" * 100_000
SHORT = "/short"


class Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}

    def do_GET(self) -> None:  # noqa: N802
        if self.path == SHORT:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:1234])
        elif self.path in self.files:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.files[self.path])))
            self.end_headers()
            self.wfile.write(self.files[self.path])
        else:
            self.send_error(404)

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
        (SHORT, None, "cut off after 1,234"),
        ("/missing", None, r"can't be downloaded \(404\).* by hand"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(
    server: str, tmp_path: Path, path: str, md5: str | None, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        download(server + path, tmp_path / "down" / "file", md5)
    assert list((tmp_path / "down").iterdir()) == []


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
    Handler.files[f"/{meta}"] = b'{"parent_asin": "P", "title": "Nevermind"}\n'
    Handler.files[f"/{reviews}"] = b"user_id,parent_asin,rating,timestamp\nU,P,5.0,1600000000000\n"


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

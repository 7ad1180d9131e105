"""Download data sets from their official places into the cache folder, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    AbstractHTTPHandler,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from starec_env.data import NAMES, cache_dir, cached
from starec_env.data.files import check_gzip
from starec_env.errors import DataError, InvalidOption, unknown

MOST_BYTES = 8 << 30
"""The largest file that is downloaded."""
_TIMEOUT_S = 30.0
_CHUNK = 1 << 18
_SLOWEST = 1 << 10  # bytes a second, over each window
_WINDOW_S = 60.0
_STALE_S = 600.0  # a download that is alive writes far more often


class Remote(NamedTuple):
    """A published file: where it is, the md5 that is published with it (None where none is), and its limit of size."""

    url: str
    md5: str | None = None
    most: int = MOST_BYTES

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
REMOTES: dict[str, tuple[Remote, ...]] = {
    "ml-1m": (Remote(f"{_GROUPLENS}/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906", 64 << 20),),
    "ml-100k": (Remote(f"{_GROUPLENS}/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723", 64 << 20),),
    "amazon-cds-2014": (
        Remote(f"{_SNAP}/meta_CDs_and_Vinyl.json.gz"),
        Remote(f"{_SNAP}/reviews_CDs_and_Vinyl_5.json.gz"),
    ),
    "amazon-cds-2018": (
        Remote(f"{_UCSD}/amazon_v2/metaFiles2/meta_CDs_and_Vinyl.json.gz"),
        Remote(f"{_UCSD}/amazon_v2/categoryFilesSmall/CDs_and_Vinyl_5.json.gz"),
    ),
    "amazon-cds-2023": (
        Remote(f"{_UCSD}/amazon_2023/raw/meta_categories/meta_CDs_and_Vinyl.jsonl.gz"),
        Remote(f"{_UCSD}/amazon_2023/benchmark/5core/rating_only/CDs_and_Vinyl.csv.gz"),
    ),
}
"""Each data set's files: GroupLens's, SNAP's and the McAuley Lab's own servers. Metadata comes first, so that a
fetch that broke off is never taken for a data set without titles."""


def fetch(name: str, *, mirror: str | None = None, report: Callable[[str], None] = print) -> Path:
    """Put a data set's files into the cache folder, where `load_dataset(name)` finds them.

    A file that is there already stays. A download is written beside its place and renamed only when it is whole:
    its length is what the server said and its md5 the published one. Where none is published, the file is unpacked
    to its last checksum, and its sha256 is reported, to compare with another copy. What killed fetches left behind is
    removed.

    Args:
        name: The data set.
        mirror: Take the files from this address instead of the official ones' scheme and host.
        report: Called with a line for each file.

    Returns:
        What `load_dataset` reads: the zip, or the folder of files.

    Raises:
        UnknownName: No data set of that name.
        DataError: It can't be downloaded; the message says what to download by hand and where to put it.
    """
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    if name not in REMOTES:
        return cached(name)  # bundled; or a format, which has no files of its own
    folder = cache_dir() / "datasets" / name
    for remote in REMOTES[name]:
        target = folder / remote.file
        _remove_stale(target)
        url = remote.url if mirror is None else mirror.rstrip("/") + urlsplit(remote.url).path
        if target.exists():
            _check_md5(str(target), hashlib.md5(target.read_bytes(), usedforsecurity=False), remote.md5)
            report(f"{target}: there already")
            continue
        sha256 = download(url, target, remote.md5, most=remote.most)
        checked = "md5 as published" if remote.md5 else f"no checksum is published; sha256 {sha256}"
        report(f"{target}: {target.stat().st_size:,} bytes, {checked}")
    return cached(name)


def _remove_stale(target: Path) -> None:
    for partial in target.parent.glob(f".{target.name}.*.part"):
        try:
            if time.time() - partial.stat().st_mtime > _STALE_S:
                partial.unlink()
        except OSError:
            continue  # another process has removed it


def download(url: str, target: Path, md5: str | None = None, *, most: int = MOST_BYTES) -> str:
    """Download one file, showing progress, and return its sha256 in hex; `target` appears whole or not at all.

    Args:
        url: An http or https address; https is never left for http.
        target: Where the file goes.
        md5: Its published md5 in hex. Without it a name that ends in ".gz" must hold a whole gzip stream, and any
            other file must come with its length.
        most: The number of bytes beyond which it is refused.

    Raises:
        DataError: The address can't be reached, sends too little, too much, too slowly or something else than the md5
            says, or `target` can't be written.
        InvalidOption: The address is not http or https.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InvalidOption(f"got the address {url!r}; wanted one that begins with https:// or http://")
    hashes = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in _chunks(url, target, most, sized=md5 is None and target.suffix != ".gz"):
                    file.write(chunk)
                    for digest in hashes:
                        digest.update(chunk)
            _check_md5(url, hashes[0], md5)
            if md5 is None and target.suffix == ".gz":
                check_gzip(Path(partial), url)
            os.replace(partial, target)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as fault:
        raise DataError(f"{target}: can't be written ({fault}): set STAREC_CACHE to another folder") from fault
    return hashes[1].hexdigest()


def _check_md5(what: str, got: Any, published: str | None) -> None:
    if published is not None and got.hexdigest() != published:
        raise DataError(
            f"{what}: has md5 {got.hexdigest()}, published is {published}: it is damaged, or something on the way "
            "(a login page, a proxy) answered instead: remove it if it was kept, and fetch again"
        )


class Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https alone, and never from https to http."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """Refuse what is neither http nor https, or less than it was."""
        schemes = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise URLError(f"it redirects to {newurl}, which is no {schemes[0]} address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _PacedBytes(io.RawIOBase):
    """The bytes of a connection; reading raises TimeoutError where a window of time brings too few to ever end."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw, self.since, self.received = raw, time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        n_bytes = self.raw.readinto(buffer)
        self.received += n_bytes or 0
        if (spent := time.monotonic() - self.since) >= _WINDOW_S:
            if self.received < _SLOWEST * spent:
                raise TimeoutError(f"slower than {_SLOWEST:,} bytes a second for {spent:.0f} seconds")
            self.since, self.received = time.monotonic(), 0
        return n_bytes

    def close(self) -> None:
        self.raw.close()
        super().close()


class _PacedResponse(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_PacedBytes(self.fp.detach()))


class _Paced(AbstractHTTPHandler):
    """Opens connections whose answers are paced, from their first header on."""

    def do_open(self, http_class: Any, req: Request, **options: Any) -> http.client.HTTPResponse:
        paced: Any = type("Paced", (http_class,), {"response_class": _PacedResponse})
        return super().do_open(paced, req, **options)


class _Http(_Paced, HTTPHandler):
    pass


class _Https(_Paced, HTTPSHandler):
    pass


def _chunks(url: str, target: Path, most: int, sized: bool) -> Iterator[bytes]:
    """Yield the bytes of an address as they come; `sized` refuses an answer of unknown length."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    by_hand = f"download {url} by hand and put it at {target}, or give its place as path="
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    opener = build_opener(Redirects, _Http, _Https)
    received = 0
    try:
        with (
            opener.open(Request(url, headers={"User-Agent": "starec"}), timeout=_TIMEOUT_S) as answer,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            length = _length(answer, sized)
            task = progress.add_task(target.name, total=length)
            while (length or 0) <= most and received <= most and (chunk := answer.read(_CHUNK)):
                received += len(chunk)
                progress.update(task, advance=len(chunk))
                yield chunk
    except URLError as fault:  # an HTTP status too
        status = f"{fault.code} " if isinstance(fault, HTTPError) else ""
        raise DataError(f"{url}: can't be downloaded ({status}{fault.reason}): {by_hand}") from fault
    except (OSError, ValueError, http.client.HTTPException) as fault:
        raise DataError(f"{url}: cut off after {received:,} bytes ({fault}): try again, or {by_hand}") from fault
    if max(received, length or 0) > most:
        raise DataError(f"{url}: sends more than {most:,} bytes, which this file doesn't have: {by_hand}")
    if length is not None and received != length:
        raise DataError(f"{url}: cut off after {received:,} of {length:,} bytes: try again, or {by_hand}")


def _length(answer: Any, sized: bool) -> int | None:
    """The length that an answer announces; raises URLError where the answer isn't the whole file."""
    if answer.status != 200:
        raise URLError(f"it answers {answer.status}, a part or something else than the file; wanted 200")
    given = answer.headers.get("Content-Length")
    if given is None and sized and not answer.chunked:
        raise URLError("it doesn't say how long the file is, and no checksum is published")
    return None if given is None else int(given)

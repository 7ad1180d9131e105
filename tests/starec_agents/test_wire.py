import pytest

from starec_agents.wire import public, retry_after

NOON = "Wed, 01 Jan 2025 12:00:00 GMT"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        ("1e12", 1e12),
        ("inf", float("inf")),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Wed, 01 Jan 2025 12:00:30 GMT", 30.0),
        ("Wed, 01 Jan 2025 11:00:00 GMT", 0.0),
        ("Wed, 99 Jan 2025 11:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_against_the_servers_own_clock(said: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": said, "date": NOON}) == seconds


def test_retry_after_takes_this_machines_clock_where_the_server_shows_none() -> None:
    assert retry_after({"retry-after": NOON}) == 0.0
    assert (retry_after({"retry-after": "Wed, 01 Jan 2200 12:00:00 GMT"}) or 0.0) > 1e9


def test_no_retry_after_is_none() -> None:
    assert retry_after({}) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("https://me:secret@host/v1?api-key=secret", "https://host/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://host:99999/v1", "<not a URL>"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert public(url) == shown

"""Keys, passwords and other secrets are replaced by *** before a text is cut, logged, raised or recorded."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from starec_env.errors import InvalidOption

_SHORTEST = 4
_SHORTEST_IN_ANSWERS = 8
"""A key as short as "none" or "ollama", as local servers are given, is a word that an honest answer may hold."""
_LIKE_A_KEY = re.compile(r"(?=[^/]*[0-9])(?=[^/]*[A-Za-z])[\w~-]{8,}(?=/|$)")
_CHAT = "/chat/completions"


class Secrets:
    """Texts that nobody may see: as they are, in base64 (also as a bearer's header holds them), and quoted for URLs."""

    def __init__(self, values: Iterable[str]) -> None:
        plain = {value for value in values if len(value) >= _SHORTEST}
        forms = {form for value in plain for form in (value, quote(value, safe=""), *_encoded(value))}
        self._all = sorted(forms, key=len, reverse=True)
        self._long = [form for form in self._all if len(form) >= _SHORTEST_IN_ANSWERS]

    def hide(self, text: str) -> str:
        """A text of an error or a log, without them."""
        for secret in self._all:
            text = text.replace(secret, "***")
        return text

    def hide_in_answer(self, text: str) -> str:
        """A model's answer without them; those of under 8 characters are left, as they may be common words."""
        for secret in self._long:
            text = text.replace(secret, "***")
        return text


def _encoded(value: str) -> list[str]:
    if len(value) < _SHORTEST_IN_ANSWERS:
        return []
    return [b64encode(text.encode()).decode().rstrip("=") for text in (value, f"Bearer {value}")]


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL taken apart."""

    base: str
    """Without user, password, query, fragment and the slashes at its end."""
    query: str
    """Goes behind the path of each request."""
    login: str
    """"user:password", or ""."""
    shown: str
    """What errors and records show."""
    secrets: tuple[str, ...]
    with_path: bool
    """Whether the URL ended in /chat/completions, which was taken off."""

    def url(self, path: str) -> str:
        """The URL of a path of the API, like "/models"."""
        return f"{self.base}{path}{'?' if self.query else ''}{self.query}"


def read_address(base_url: str) -> Address:
    """Take a base URL apart: blanks around it, slashes at its end and a pasted /chat/completions are taken off.

    Raises:
        InvalidOption: It isn't an http(s) URL with a host.
    """
    text = base_url.strip()
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        harmless = re.split(r"[?#]", text.rpartition("@")[2])[0]
        raise InvalidOption(f"base_url={harmless!r} isn't a URL like 'http://localhost:8000/v1'")
    path = parts.path.rstrip("/")
    base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path.removesuffix(_CHAT).rstrip('/')}"
    login = unquote(parts.netloc.rpartition("@")[0])
    values = [value for name, value in parse_qsl(parts.query) if "version" not in name.lower()]
    user, _, password = login.partition(":")
    basic = b64encode(login.encode()).decode().rstrip("=") if login else ""
    secrets = (password or user, basic, parts.fragment, *values, *_LIKE_A_KEY.findall(parts.path))
    return Address(base, parts.query, login, public(text), secrets, path.endswith(_CHAT))


def public(url: str) -> str:
    """A URL without what may be secret in it: user, password, query, and parts of the path that look like a key."""
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    except ValueError:
        return "<not a URL>"
    return f"{parts.scheme}://{host or ''}{port}{_LIKE_A_KEY.sub('***', parts.path)}"


def short(text: str, most: int = 200) -> str:
    """Text of unknown origin, fit for one line of an error message; hide secrets in it first."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 5 * most]).split())
    return line if len(line) <= most else line[: most - 3] + "..."

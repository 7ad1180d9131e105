"""Every error starec raises on purpose; each message says what was got, what was wanted and what to do."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral

from gymnasium.error import InvalidAction


class StarecError(Exception):
    """Base of all errors below; the command line prints its text and exits with status 1."""


class DataError(StarecError):
    """Raised when a data set's files can't be read as the format they claim to be."""


class UnknownName(StarecError, KeyError):
    """Raised when a data set, user, item, option or method of that name doesn't exist."""

    __str__ = Exception.__str__


class InvalidRanking(StarecError, ValueError, InvalidAction):
    """Raised when an action isn't a list of distinct candidate positions."""


class InvalidSlate(StarecError, ValueError, InvalidAction):
    """Raised for an action that isn't a slate of the items that may be shown."""


class InvalidOption(StarecError, ValueError):
    """Raised when a setting is out of its range or contradicts another."""


class EndpointError(StarecError):
    """Raised when an LLM endpoint gives no usable answer, after the retries that its kind of fault deserves.

    Attributes:
        kind: "connection", "timeout", "auth", "not_found", "rate_limit", "server", "bad_request" or "bad_answer".
    """

    def __init__(self, message: str, kind: str = "server") -> None:
        super().__init__(message)
        self.kind = kind


class RunError(StarecError):
    """Raised when a run's folder can't be used: it belongs to other settings, is locked, or is damaged."""


class TrainingError(StarecError):
    """Raised when training can't start as asked, or must stop before time is wasted."""


class MissingExtra(StarecError, ImportError):
    """Raised when a feature needs an optional dependency that isn't installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the '{extra}' extra: pip install 'starec[{extra}]'")


class StarecWarning(UserWarning):
    """Something was read or done in a way the user should know of."""


def unknown(kind: str, got: object, known: Iterable[object]) -> UnknownName:
    """Build the error for a name that doesn't exist, with the nearest that does.

    Args:
        kind: What was named, e.g. "data set".
        got: What the user gave.
        known: The names that exist; a long list is cut in the message.
    """
    names = [str(name) for name in known]
    near = get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {_listed(names)}"
    return UnknownName(f"there is no {kind} {got!r}: {hint}")


def check_choice(option: str, got: str, choices: Sequence[str]) -> None:
    """Raise InvalidOption unless `got` is one of `choices`, with the nearest that is."""
    if got not in choices:
        raise InvalidOption(f"{option}={got!r}: {unknown('such choice', got, choices)}")


def _listed(names: list[str], most: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise InvalidOption unless an option's value is a whole number, and at least so much."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidOption(f"{name} is {value!r}: it must be a whole number")
    if value < least:
        raise InvalidOption(f"{name} is {value}: it must be at least {least}")

"""Times as data sets write them, in any unit, to seconds and nanoseconds since 1970 without losing their order."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import DataError

_UNITS = (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))
_LATEST_S = 10**11
"""Seconds since 1970 of the year 5138: a number beyond it, by its size, counts a finer unit."""


class Times(NamedTuple):
    """Times in two columns, which sort together."""

    seconds: NDArray[np.int64]
    """(rows,) since 1970, rounded down."""
    nanoseconds: NDArray[np.int32] | None
    """(rows,) after it; None where all are whole seconds."""
    unit: str
    """What the numbers counted, e.g. "milliseconds"."""


def time_number(value: Any) -> int | float:
    """One time as a number, in whatever unit it counts: numbers, their text, ISO dates and datetimes.

    Text that is a number is that number and never a year; ISO text without a zone is universal time, and comes back as
    seconds with their fraction.

    Raises:
        ValueError: It is none of these, or isn't finite.
    """
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        text = value.strip()
        if text.lstrip("+-").isdecimal() and text.isascii():
            return int(text)
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def split_times(numbers: NDArray[Any], where: str) -> Times:
    """Seconds and nanoseconds of times that all count one unit, which their median tells.

    Args:
        numbers: (rows,) int64 or finite float64 numbers, seconds, milliseconds, microseconds or nanoseconds since 1970;
            or datetime64 of any unit.
        where: Names the column in errors.

    Raises:
        DataError: A time lies beyond the year 5138 in the others' unit, or numbers are too large for any unit.
    """
    if numbers.dtype.kind == "M":
        unit = np.datetime_data(numbers.dtype)[0]
        if unit in ("ps", "fs", "as"):
            numbers = numbers.astype("datetime64[ns]")
        elif unit not in ("s", "ms", "us", "ns"):
            numbers = numbers.astype("datetime64[s]")
        unit = np.datetime_data(numbers.dtype)[0]
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        return _split(numbers.astype(np.int64), per_second, "datetimes")
    size = float(np.median(np.abs(numbers))) if len(numbers) else 0.0
    name, per_second = next(((n, p) for n, p in _UNITS if size < _LATEST_S * p), ("", 0))
    if not per_second:
        raise DataError(
            f"{where}: times around {size:.3g} are in no unit known: wanted seconds, milliseconds, microseconds or "
            "nanoseconds since 1970, or datetimes"
        )
    limit = _LATEST_S * per_second
    far = np.abs(numbers.astype(np.float64)) >= limit
    if far.any():
        row = int(far.argmax())
        raise DataError(
            f"{where}, row {row}: got {numbers[row]}, where the others are in {name} since 1970: one unit in a column"
        )
    return _split(numbers, per_second, name)


def _split(numbers: NDArray[Any], per_second: int, unit: str) -> Times:
    if numbers.dtype.kind == "f":
        seconds = np.floor(numbers / per_second)
        rest = np.rint((numbers - seconds * per_second) * (10**9 // per_second))
        carry = rest >= 10**9
        whole, nanoseconds = (seconds + carry).astype(np.int64), np.where(carry, 0, rest).astype(np.int32)
    else:
        numbers = numbers.astype(np.int64, copy=False)
        if per_second == 1:
            return Times(numbers, None, unit)
        whole = numbers // per_second
        nanoseconds = ((numbers - whole * per_second) * (10**9 // per_second)).astype(np.int32)
    return Times(whole, nanoseconds if nanoseconds.any() else None, unit)

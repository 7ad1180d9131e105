"""Times as data sets write them, in any unit, to seconds and nanoseconds since 1970 without losing their order."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import DataError

_UNITS = (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_LATEST_S = 10**11
"""Seconds since 1970 of the year 5138: a number beyond it, by its size, counts a finer unit."""
_SAMPLE = 100_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


def time_column(column: NDArray[Any], where: str) -> NDArray[Any]:
    """A column of times as `split_times` takes it.

    Args:
        column: (rows,) numbers, datetime64, or objects: numbers, their text, ISO text, dates or datetimes.
        where: Names the column in errors.

    Returns:
        (rows,) int64 or float64 numbers in the unit given, or datetime64.

    Raises:
        DataError: A time is missing or is no time, or numbers and dates are mixed; rows are counted from 0.
    """
    if column.dtype.kind == "M":
        _refuse_row(where, column, np.isnat(column))
        return column
    if column.dtype.kind == "f":
        _refuse_row(where, column, ~np.isfinite(column))
        return column.astype(np.float64, copy=False)
    if column.dtype.kind == "i" or (column.dtype.kind == "u" and column.max(initial=0) < 2**63):
        return column.astype(np.int64, copy=False)
    return _from_objects(column.tolist(), where)


def _from_objects(values: list[Any], where: str) -> NDArray[Any]:
    numbers: list[int | float] = []
    dated = False
    for row, value in enumerate(values):
        try:
            number, is_date = _number_or_nanoseconds(value)
        except (TypeError, ValueError, OverflowError):
            raise _no_time(where, row, value) from None
        if row and is_date != dated:
            raise DataError(f"{where}, row {row}: got {value!r} after {values[0]!r}: numbers or dates, not both")
        dated = is_date
        numbers.append(number)
    try:
        array = np.array(numbers, np.float64 if any(isinstance(number, float) for number in numbers) else np.int64)
    except OverflowError:
        row = next(row for row, number in enumerate(numbers) if not -(2**63) <= number < 2**63)
        raise _no_time(where, row, values[row]) from None
    return array.view("datetime64[ns]") if dated else array


def _number_or_nanoseconds(value: Any) -> tuple[int | float, bool]:
    """A number in its own unit and False, or nanoseconds since 1970 and True where the value is a date."""
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[ns]").astype(np.int64)), True
    if isinstance(value, np.generic):
        value = value.item()
    is_date = isinstance(value, date) or (isinstance(value, str) and not is_number(value))
    return (_ns(value) if is_date else time_number(value)), is_date


def is_number(text: str) -> bool:
    """Whether text is a number rather than a date."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def date_time(text: str) -> np.datetime64:
    """ISO text as a time to the nanosecond; raises ValueError for any other text, and outside the years 1678 to 2262.

    Without a zone it is universal time.
    """
    return np.datetime64(_ns(text), "ns")


def _ns(value: str | date) -> int:
    finer = 0
    if isinstance(value, str):
        text = value.strip()
        fraction = re.search(r"[.,][0-9]{6}([0-9]{1,3})", text)  # datetime keeps six digits
        finer = int(fraction[1].ljust(3, "0")) if fraction else 0
        value = datetime.fromisoformat(text)
    elif not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    finer += getattr(value, "nanosecond", 0)  # pandas' timestamps
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
    nanoseconds = since // timedelta(microseconds=1) * 1000 + finer
    if not -(2**63) < nanoseconds < 2**63:
        raise ValueError(value)
    return nanoseconds


def _refuse_row(where: str, column: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise _no_time(where, row, column[row : row + 1].tolist()[0])


def _no_time(where: str, row: int, got: Any) -> DataError:
    return DataError(
        f"{where}, row {row}: got {got!r}; wanted a time, as a number of seconds, milliseconds, microseconds or "
        "nanoseconds since 1970, or as a date (ISO 8601): fill in or leave out such rows"
    )


def split_times(numbers: NDArray[Any], where: str) -> Times:
    """Seconds and nanoseconds of times that all count one unit, which their median tells.

    Args:
        numbers: (rows,) int64 or finite float64 numbers, seconds, milliseconds, microseconds or nanoseconds since 1970;
            or datetime64 of any unit.
        where: Names the column in errors.

    Raises:
        DataError: A time is of another unit than the others, by its size, or numbers are too large for any unit; rows
            are counted from 0.
    """
    if numbers.dtype.kind == "M":
        unit = np.datetime_data(numbers.dtype)[0]
        if unit not in _PER_SECOND:
            unit = "ns" if unit in ("ps", "fs", "as") else "s"
            numbers = numbers.astype(f"datetime64[{unit}]")
        return _split(numbers.view(np.int64), _PER_SECOND[unit], "datetimes")
    sample = np.abs(numbers[:: len(numbers) // _SAMPLE + 1].astype(np.float64))
    size = float(np.median(sample)) if len(sample) else 0.0
    name, per_second = next(((n, p) for n, p in _UNITS if size < _LATEST_S * p), ("", 0))
    if not per_second:
        raise DataError(
            f"{where}: times around {size:.3g} are in no unit known: wanted seconds, milliseconds, microseconds or "
            "nanoseconds since 1970, or datetimes"
        )
    _refuse_other_units(numbers, size, name, per_second, where)
    return _split(numbers, per_second, name)


def _refuse_other_units(numbers: NDArray[Any], size: float, name: str, per_second: int, where: str) -> None:
    """Refuse numbers beyond the unit's limit, and those as large as the others would be in a coarser unit."""
    limit = _LATEST_S * per_second
    wrong = (numbers >= limit) | (numbers <= -limit)
    for _, factor in _UNITS[1:]:
        if factor <= per_second:
            wrong |= (numbers > size / factor / 3) & (numbers < size / factor * 3)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{where}, row {row}: got {numbers[row]}, where the others are in {name} since 1970: one unit in a column"
        )


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

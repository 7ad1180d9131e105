"""Ids as data sets write them: whole numbers or text, never rounded, wrapped, merged or turned into another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def is_whole(text: str) -> bool:
    """Whether text is a whole number as int() would print it again, and fits 64 bits: not "007", "1_0" or "２"."""
    return _WHOLE.fullmatch(text) is not None


def text_ids(*columns: Sequence[str]) -> list[NDArray[Any] | list[str]]:
    """Columns of ids read from text: all become ints if each id of each is a whole number, else all stay text."""
    distinct = set().union(*columns)
    if not all(map(is_whole, distinct)):
        return [list(column) for column in columns]
    return [np.fromiter(map(int, column), np.int64, len(column)) for column in columns]

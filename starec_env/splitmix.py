"""The one hash of numbers behind all that is drawn as a pure function: splitmix64 (Steele, Lea, Flood 2014)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The odd step by which splitmix64's state goes on: 2**64 over the golden ratio."""
STEP = GOLDEN << np.uint64(3)
"""From a visit's step to the next one's words: of each step seven numbers can be drawn, GOLDEN apart."""
_ALL = 2**64 - 1
_ROUNDS = [(np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))]
_LAST = np.uint64(31)


def seed_word(seed: int) -> np.uint64:
    """A seed, at least 0, as one 64-bit word: itself where it fits, else its 64-bit parts mixed together."""
    word = seed & _ALL
    while (seed := seed >> 64) > 0:
        word ^= int(splitmix64(np.array([seed & _ALL], np.uint64) + GOLDEN)[0])
    return np.uint64(word)


def splitmix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of 64-bit words in place, modulo 2**64 (splitmix64's finaliser), and return them."""
    for shift, factor in _ROUNDS:
        words ^= words >> shift
        words *= factor
    words ^= words >> _LAST
    return words


def visit_words(seed: np.uint64, users: NDArray[np.int64], visits: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n,) words from which all that is drawn in users' visits begins, of a seed's word."""
    words = splitmix64(users.astype(np.uint64) * GOLDEN + seed)
    return splitmix64(words + visits.astype(np.uint64) * GOLDEN)

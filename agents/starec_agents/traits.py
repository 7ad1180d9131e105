"""A user's traits in words, for the memory that an agent begins with before a recommender."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from starec_agents.tasks import nouns_of
from starec_env.dataset import Dataset
from starec_env.recommend.traits import Traits, traits_of

_WORDS = {
    "activity": ("takes few {many}", "takes many {many}"),
    "pickiness": ("likes nearly all of them", "is hard to please"),
    "conformity": ("often rates against what others think", "rates as others do"),
    "diversity": ("keeps to a few kinds of {many}", "takes all kinds of {many}"),
}
"""Of the lowest and the highest third; the middle is not worth a word."""


def traits_in_words(dataset: Dataset, stops: NDArray[np.int64] | None = None) -> Callable[[int], str]:
    """A sentence about a user, by 0-based index: what sets the user apart from others; "" for nothing.

    Args:
        dataset: Whose users.
        stops: As for `traits_of`.
    """
    traits, many = traits_of(dataset, stops), nouns_of(dataset.domain).many

    def sentence(user: int) -> str:
        said = [words.format(many=many) for words in _said(traits, user)]
        return f"Beside others, this user {_joined(said)}." if said else ""

    return sentence


def _said(traits: Traits, user: int) -> list[str]:
    found = []
    for name, (low, high) in _WORDS.items():
        rank = getattr(traits, name)[user]
        if rank < 1 / 3 or rank > 2 / 3:
            found.append(low if rank < 1 / 3 else high)
    return found


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

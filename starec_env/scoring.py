"""What a rank is worth: the position reward and NDCG for a single relevant item."""

from math import log2

CUTOFFS = (1, 5, 10, 20)
"""The k of every NDCG@k that is reported (paper 5.1.2)."""

LIKED_CUTOFF = 5
"""A target ranked at or above this place counts as "Predicted Liked" (4.1.3 names no figure; this is where the
position reward is positive)."""


def position_reward(rank: int | None) -> float:
    """Reward of a ranking that puts the true item at `rank` (paper 4.2.2).

    Args:
        rank: 1-based place of the true item; None when the ranking doesn't hold it.

    Returns:
        +1 at 1, +0.5 at 2-5, 0 at 6-10, -0.5 at 11-20, -1 beyond or missing.
    """
    if rank is None or rank > 20:
        return -1.0
    if rank == 1:
        return 1.0
    if rank <= 5:
        return 0.5
    return 0.0 if rank <= 10 else -0.5


def ndcg(rank: int | None, k: int) -> float:
    """NDCG@k of a ranking with one relevant item: 1 / log2(1 + rank) if rank <= k, else 0 (paper 5.1.2).

    Args:
        rank: 1-based place of the relevant item; None when it is missing, which scores 0.
        k: Cut-off, at least 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}: NDCG@k needs a cut-off of at least 1")
    return 0.0 if rank is None or rank > k else 1.0 / log2(1 + rank)

"""What a rank earns: the paper's position reward, and the place from which a target counts as predicted liked."""

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

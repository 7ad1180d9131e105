"""Early warnings from a training log: SFT overfit, reward hacking, memory drift, and learning that has stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

Log = Sequence[Mapping[str, Any]]

_SPAN = 5


def symptoms(log: Log, *, groups: bool = True) -> dict[str, str]:
    """What looks wrong in a log: symptom -> what was seen and what helps.

    The paper's failure signs, each with a rule that a few logged steps can meet: the last five are compared with the
    first five.

    Args:
        log: A trainer's `state.log_history`, oldest first.
        groups: Whether advantages are normalised in each prompt's group: only then is one of equal rewards lost.
    """
    found: dict[str, str] = {}
    evals = _values(log, "eval_loss")
    if len(evals) >= 3 and evals[-1] > evals[-2] > evals[-3]:
        found["SFT overfit"] = (
            f"the loss on held-out rows rose twice in a row, to {evals[-1]:.3f}: stop at an earlier checkpoint, "
            "train fewer epochs, or teach more rows"
        )
    reward, valid, score = (_change(log, name) for name in ("reward", "rank/valid", "rank/ndcg@10"))
    if reward and valid and reward[1] > reward[0] + 0.05 and valid[1] < valid[0] - 0.1:
        found["reward hacking"] = (
            f"the reward rose to {reward[1]:.2f} while valid rankings fell from {valid[0]:.0%} to {valid[1]:.0%}: read "
            "the kept completions, raise beta or lower the learning rate"
        )
    elif reward and score and reward[1] > reward[0] + 0.05 and score[1] < score[0] - 0.02:
        found["reward hacking"] = (
            f"the reward rose to {reward[1]:.2f} while NDCG@10 fell to {score[1]:.3f}: read the kept completions"
        )
    usable, length = _change(log, "memory/usable"), _change(log, "memory/characters")
    if usable and usable[1] < usable[0] - 0.1:
        found["memory drift"] = f"usable memory updates fell from {usable[0]:.0%} to {usable[1]:.0%}"
    elif length and not 0.5 * length[0] <= length[1] <= 2 * length[0]:
        found["memory drift"] = f"profiles went from {length[0]:.0f} to {length[1]:.0f} characters: read some"
    stuck, clipped = _change(log, "frac_reward_zero_std"), _change(log, "completions/clipped_ratio")
    if groups and stuck and stuck[1] > 0.8:
        found["zero-variance groups"] = (
            f"{stuck[1]:.0%} of the groups earn one reward each, so nothing is learned from them: more generations, "
            "the NDCG reward, refill, or fewer prompts that are always right or always wrong"
        )
    if clipped and clipped[1] > 0.3:
        found["clipped answers"] = f"{clipped[1]:.0%} of the answers hit max_completion_length: raise it"
    return found


def _values(log: Log, name: str) -> list[float]:
    return [float(entry[name]) for entry in log if isinstance(entry.get(name), int | float)]


def _change(log: Log, name: str) -> tuple[float, float] | None:
    values = _values(log, name)
    return (fmean(values[:_SPAN]), fmean(values[-_SPAN:])) if len(values) >= 2 * _SPAN else None

"""Groups of equal rewards are replaced in the step by groups of other prompts, as far as there are any."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support_training import logged

from starec_env.errors import InvalidOption
from starec_training.checkpoints import StageConfig, claim
from starec_training.dataset import Rows, read_snapshot
from starec_training.grpo import paper_grpo, train_grpo
from starec_training.trainer import AgentGRPO

PROMPTS, GROUP = 4, 4


def config(out: Path, **options: Any) -> Any:
    settings = {"learning_rate": 1e-3, "max_steps": 2, "num_generations": GROUP, "per_device_train_batch_size": 8}
    settings |= {"gradient_accumulation_steps": 2, "max_completion_length": 8, "beta": 0.0, "disable_tqdm": True}
    return paper_grpo(output_dir=str(out), bf16=False, **{**settings, **options})


class Paying:
    """A reward of which it is known which prompts have spread; counts the completions that it was asked about."""

    __name__ = "paying"

    def __init__(self, rows: Rows, spread: int) -> None:
        self.spread = {row.snapshot.key for row in list(rows)[:spread]}
        self.asked: list[int] = []

    def __call__(self, *, prompts: Sequence[Any], snapshot: Sequence[str], log_extra: Any, **trl: Any) -> list[float]:
        self.asked.append(len(prompts))
        keys = [read_snapshot(text).key for text in snapshot]
        log_extra("key", list(map(str, keys)))
        return [float(place % GROUP) if key in self.spread else 0.5 for place, key in enumerate(keys)]


def trained(model: Path, rows: Rows, out: Path, spread: int, **options: Any) -> tuple[Paying, list[pd.DataFrame]]:
    """The reward after a training, and the completions of each step."""
    pays, refill = Paying(rows, spread), options.pop("refill")
    train_grpo(model, rows, config(out, **options), reward="none", reward_funcs=[pays], refill=refill)
    return pays, [pd.read_parquet(path) for path in sorted((out / "completions").glob("*.parquet"))]


@pytest.fixture(scope="module")
def rows(taught: Rows) -> Rows:
    return Rows(list(taught)[:16])


def test_a_batch_has_no_group_without_spread_where_enough_prompts_have_one(
    tiny: Path, rows: Rows, tmp_path: Path
) -> None:
    pays, steps = trained(tiny, rows, tmp_path, spread=12, refill=8)
    for step in steps:
        groups = [step[start : start + GROUP] for start in range(0, len(step), GROUP)]
        assert len(groups) == PROMPTS  # as many as without
        for group in groups:
            assert sorted(group["paying"]) == [0, 1, 2, 3]
            assert group["prompt"].map(str).nunique() == group["key"].nunique() == 1
        prompts = {str(row.snapshot.key): str([dict(message) for message in row.prompt]) for row in rows}
        assert [prompts[key] for key in step["key"]] == [str(list(map(dict, prompt))) for prompt in step["prompt"]]
        assert step["key"].nunique() == PROMPTS
        assert step["advantage"].abs().gt(0.1).all()
    assert logged(tmp_path, "frac_reward_zero_std") == [0.0, 0.0]
    assert logged(tmp_path, "refill/zero_std") == logged(tmp_path, "refill/replaced")
    assert sum(logged(tmp_path, "refill/replaced")) > 0
    assert sum(pays.asked) > 2 * PROMPTS * GROUP


def test_rounds_are_bounded_and_what_has_no_spread_stays(tiny: Path, rows: Rows, tmp_path: Path) -> None:
    pays, steps = trained(tiny, rows, tmp_path, spread=0, refill=2)
    assert pays.asked == [PROMPTS * GROUP] * 6  # the batch and two rounds, twice
    assert logged(tmp_path, "frac_reward_zero_std") == logged(tmp_path, "refill/zero_std") == [1.0, 1.0]
    assert logged(tmp_path, "refill/replaced") == [0.0, 0.0]
    assert all(len(step) == PROMPTS * GROUP for step in steps)


def test_it_ends_when_every_prompt_of_the_round_was_tried(tiny: Path, rows: Rows, tmp_path: Path) -> None:
    pays, _ = trained(tiny, Rows(list(rows)[:6]), tmp_path, spread=0, refill=9, max_steps=1)
    assert pays.asked == [PROMPTS * GROUP, 2 * GROUP]


def test_without_it_nothing_is_drawn_again(tiny: Path, rows: Rows, tmp_path: Path) -> None:
    pays, _ = trained(tiny, rows, tmp_path, spread=0, refill=0, max_steps=1)
    assert pays.asked == [PROMPTS * GROUP]
    assert logged(tmp_path, "refill/zero_std") == []


def test_groups_of_two_processes_are_paired_within_each() -> None:
    import torch

    class Two:
        num_processes = 2

    trainer = AgentGRPO.__new__(AgentGRPO)
    trainer.accelerator = Two()
    flat, usable = torch.tensor([1, 0, 1, 0, 0, 1]).bool(), torch.tensor([0, 1, 1, 1]).bool()
    assert trainer._most(flat) == 2
    assert list(trainer._pairs(flat, usable)) == [(0, 1), (5, 2)]


@pytest.mark.parametrize(
    ("refill", "options", "algorithm", "said"),
    [
        (-1, {}, "grpo", "0 or more"),
        (1, {}, "reinforce++", "teaches too"),
        (1, {"per_device_train_batch_size": 6, "steps_per_generation": 1}, "grpo", "aren't groups of 4"),
    ],
)
def test_what_can_not_be_refilled_is_refused_before_anything_is_loaded(
    rows: Rows, tmp_path: Path, refill: int, options: dict[str, Any], algorithm: str, said: str
) -> None:
    made = config(tmp_path)
    for name, value in options.items():
        setattr(made, name, value)
    with pytest.raises(InvalidOption, match=said):
        train_grpo("no-such-model", rows, made, refill=refill, algorithm=algorithm)


def test_a_folder_without_it_is_not_gone_on_with_it(rows: Rows, tmp_path: Path) -> None:
    claim(tmp_path, StageConfig.of("grpo", "model", config(tmp_path), rows))
    from starec_env.errors import TrainingError

    with pytest.raises(TrainingError, match="refill"):
        claim(tmp_path, StageConfig.of("grpo", "model", config(tmp_path), rows, refill=2))

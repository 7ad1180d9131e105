"""TRL's GRPOTrainer with a check of each group and, on demand, DAPO's dynamic sampling."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from starec_env.errors import TrainingError
from starec_env.types import Id
from starec_training.dataset import read_snapshot

Key = tuple[str, Id, int]


@dataclass
class _Drawn:
    """Groups that were generated and paid: rows of this process, rewards of all."""

    rows: list[dict[str, Any]]
    generated: tuple[Any, ...]
    """What TRL's `_generate` returns: lists with a place a completion, in dictionaries or not, or None."""
    rewards: torch.Tensor
    """(completions of all processes, reward functions)."""
    extra: dict[str, list[Any]]
    """Columns that reward functions log."""


class AgentGRPO(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer that checks each group, and may draw others in place of those without spread.

    With `refill` rounds, groups of equal rewards, which have no advantage, are replaced before the step by groups of
    other prompts: dynamic sampling (DAPO, arXiv 2503.14476, section 3.2), but for a bound on the rounds, after which
    what has no spread stays. The batch keeps its size, each group its prompt. Which prompts replace others follows from
    the seed and the batch's own prompts, so a resumed training draws the same. What reward functions log is of the
    batch as it was drawn first; TRL's `frac_reward_zero_std` is of the batch that trains.
    """

    gathered_rewards: torch.Tensor
    """(completions of all processes, reward functions) of the last batch; NaN where a function doesn't apply."""
    gathered_keys: list[Key]
    """The rows of those completions."""
    refill = 0
    """Most further rounds of generation in a step."""
    _ready: _Drawn | None = None

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **options: Any) -> torch.Tensor:
        if self._ready:
            return self.gathered_rewards
        found: torch.Tensor = super()._calculate_rewards(inputs, *args, **options)
        self.gathered_rewards = found
        keys: list[Key] = gather_object([read_snapshot(row["snapshot"]).key for row in inputs])
        if torch.isnan(found).all(1).any():
            raise TrainingError("a completion has no reward: each task needs a reward function that returns a number")
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups = [keys[start : start + size] for start in range(0, len(keys), size)]
        if any(len(set(group)) > 1 for group in groups):
            raise TrainingError(f"a group mixes prompts: {next(g for g in groups if len(set(g)) > 1)}")
        self.gathered_keys = keys
        return found

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        generated: tuple[Any, ...] = self._ready.generated if self._ready else super()._generate(prompts)
        return generated

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.refill or not self.model.training:
            scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
            return scored
        self._ready = self._refilled(inputs)
        self.gathered_rewards = self._ready.rewards
        self._pending_extra_logs.update(self._ready.extra)
        try:
            scored = super()._generate_and_score_completions(self._ready.rows)
        finally:
            self._ready = None
        return scored

    def _drawn(self, rows: list[dict[str, Any]]) -> _Drawn:
        prompts = [row["prompt"] for row in rows]
        generated = self._generate(prompts)
        _, ids, _, completions, _, fields, *_ = generated
        for name, values in fields.items():  # of a rollout, for its reward functions, as TRL passes them
            for place, row in enumerate(rows):
                row[name] = values[place] if isinstance(values, list) else values
        rewards = self._calculate_rewards(rows, prompts, completions, ids)
        extra = dict(self._pending_extra_logs)
        self._pending_extra_logs.clear()
        return _Drawn(rows, generated, rewards, extra)

    def _refilled(self, inputs: list[dict[str, Any]]) -> _Drawn:
        batch = self._drawn(inputs)
        metrics = {name: list(values) for name, values in self._pending_metrics.items()}
        flat, replaced = self._without_spread(batch.rewards), 0
        lacking, others = int(flat.sum()), self._others()
        for _ in range(self.refill):
            count = min(self._most(flat), len(others) // self.accelerator.num_processes)
            if not count:
                break
            fresh = self._drawn(self._next_rows(others, count))
            pairs = list(self._pairs(flat, ~self._without_spread(fresh.rewards)))
            for old, new in pairs:
                self._replace(batch, old, fresh, new)
                flat[old] = False
            replaced += len(pairs)
        self._pending_metrics.clear()
        self._pending_metrics.update(metrics)
        logged = self._metrics["train"]
        logged["refill/zero_std"].append(lacking / len(flat))
        logged["refill/replaced"].append(replaced / len(flat))
        return batch

    def _without_spread(self, rewards: torch.Tensor) -> torch.Tensor:
        """(groups of all processes,) whether all rewards of each are the same."""
        paid = (rewards * self.reward_weights.to(rewards.device)).nansum(1).view(-1, self.num_generations)
        return torch.isclose(paid.std(1), paid.new_zeros(()))

    def _others(self) -> list[int]:
        """The data's places without the batch's own prompts, in the batch's own order."""
        own = set(self.gathered_keys)
        order = list(range(len(self.train_dataset)))
        random.Random(repr((self.args.seed, self.gathered_keys))).shuffle(order)
        return [place for place in order if self._row_keys[place] not in own]

    @property
    def _row_keys(self) -> list[Key]:
        if not hasattr(self, "_known_keys"):
            self._known_keys = [read_snapshot(text).key for text in self.train_dataset["snapshot"]]
        return self._known_keys

    def _most(self, flat: torch.Tensor) -> int:
        """Groups without spread of the process that has most: all draw as many, since generating may be collective."""
        return int(flat.view(self.accelerator.num_processes, -1).sum(1).max())

    def _next_rows(self, others: list[int], count: int) -> list[dict[str, Any]]:
        """Rows of this process's next groups; takes those of all processes out of the others."""
        first = self.accelerator.process_index * count
        own = others[first : first + count]
        del others[: count * self.accelerator.num_processes]
        return [dict(self.train_dataset[place]) for place in own for _ in range(self.num_generations)]

    def _pairs(self, flat: torch.Tensor, usable: torch.Tensor) -> Iterator[tuple[int, int]]:
        """(group without spread, new group with spread) of each process, by their numbers among those of all."""
        processes = self.accelerator.num_processes
        for process, (old, new) in enumerate(zip(flat.view(processes, -1), usable.view(processes, -1), strict=True)):
            for one, other in zip(old.nonzero()[:, 0].tolist(), new.nonzero()[:, 0].tolist(), strict=False):
                yield process * old.numel() + one, process * new.numel() + other

    def _replace(self, batch: _Drawn, old: int, fresh: _Drawn, new: int) -> None:
        size, process = self.num_generations, self.accelerator.process_index
        batch.rewards[old * size : (old + 1) * size] = fresh.rewards[new * size : (new + 1) * size]
        here, there = old * size - process * len(batch.rows), new * size - process * len(fresh.rows)
        if 0 <= here < len(batch.rows):
            places = slice(here, here + size), slice(there, there + size)
            _put(batch.rows, fresh.rows, *places)
            _put(batch.extra, fresh.extra, *places)
            for kept, drawn in zip(batch.generated, fresh.generated, strict=True):
                _put(kept, drawn, *places)


def _put(kept: Any, drawn: Any, old: slice, new: slice) -> None:
    """Replace places of a list by others of another, or of each list of a dictionary."""
    if isinstance(kept, dict):
        for name, values in kept.items():
            _put(values, drawn.get(name), old, new)
    elif isinstance(kept, list) and kept:
        kept[old] = drawn[new] if drawn else [None] * (old.stop - old.start)

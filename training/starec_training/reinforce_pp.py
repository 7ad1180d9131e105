"""Reinforce++ (Table 5) on TRL's GRPOTrainer: KL in the return, advantages normalised over the whole batch.

Hu 2025, "REINFORCE++". What differs from GRPO: a token's advantage is the answer's reward less beta times the KL that
follows it (k1 estimate), and mean and deviation are those of all tokens of the batch, not of the prompt's group. The
clipped objective stays. The loss itself has no KL term, or the KL would count twice. It is the variant without the
group's baseline, on a group of samples a prompt. TRL's `RLOOConfig(normalize_advantages=True)` is another: a baseline
of the prompt's other samples, and the KL of the whole sequence in the reward.
"""

from __future__ import annotations

from typing import Any

import torch

from starec_training.trainer import AgentGRPO


class AgentReinforcePP(AgentGRPO):
    """GRPO's trainer with Reinforce++'s advantages; `beta` of its config weighs the KL in the return."""

    beta: float

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"].float()
        weights = self.reward_weights.to(self.gathered_rewards.device)
        first = self.accelerator.process_index * len(inputs)
        rewards = (self.gathered_rewards * weights).nansum(1)[first : first + len(inputs)]
        returns = rewards.unsqueeze(1).expand_as(mask)
        if "ref_per_token_logps" in batch:
            kl = (self._log_probabilities(batch) - batch["ref_per_token_logps"]) * mask
            returns = returns - self.beta * kl.flip(1).cumsum(1).flip(1)
            self._metrics["train" if self.model.training else "eval"]["kl"].append(self._mean(kl, mask))
        sums = torch.stack([(returns * mask).sum(), (returns**2 * mask).sum(), mask.sum()])
        total, squares, count = self.accelerator.reduce(sums, reduction="sum")
        mean = total / count
        deviation = (squares / count - mean**2).clamp_min(0).sqrt()
        batch["advantages"] = (returns - mean) / (deviation + 1e-8)
        return batch

    def _log_probabilities(self, batch: dict[str, Any]) -> torch.Tensor:
        if "old_per_token_logps" in batch:
            old: torch.Tensor = batch["old_per_token_logps"]
            return old
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        keep = batch["completion_ids"].size(1)
        with torch.no_grad():
            found: torch.Tensor = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, keep, batch_size=self.args.per_device_train_batch_size
            )[0]
        return found

    def _mean(self, values: torch.Tensor, mask: torch.Tensor) -> float:
        total, count = self.accelerator.reduce(torch.stack([(values * mask).sum(), mask.sum()]), reduction="sum")
        return float(total / count.clamp(min=1))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        beta, self.beta = self.beta, 0.0
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        return loss

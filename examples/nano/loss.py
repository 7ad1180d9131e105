"""Supervised training of scores: a teacher's score is blurred a little, and its order counts as well as its numbers."""

from __future__ import annotations

from typing import Any

import torch
from rows import FACTOR
from start import score_ids
from trl import SFTTrainer

BLUR = 2.5
"""Standard deviation of a taught score, in points."""


class ScoresTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer, with the loss of answers that are scores; other tokens are learned as always."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The mean over what each kind of token is taught; the head reads the answers' tokens alone."""
        labels = inputs.pop("labels")[:, 1:]
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=self.args.bf16):
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1].float()
        known = torch.tensor(score_ids(self.processing_class), device=labels.device)
        score = torch.full((len(self.processing_class),), -1, device=labels.device)
        score[known] = torch.arange(len(known), device=labels.device)
        score = torch.where(labels >= 0, score[labels.clamp(min=0)], -1)
        rows, places = torch.nonzero(labels >= 0, as_tuple=True)
        logs = torch.log_softmax(hidden[rows, places] @ model.lm_head.weight.T, -1)
        wanted = score[rows, places]
        token = logs.gather(-1, labels[rows, places][:, None])[:, 0]
        form = -torch.where(wanted < 0, token, logs[:, known].logsumexp(-1)).mean()  # that a score comes, not which
        lists = [(rows == row) & (wanted >= 0) for row in range(len(labels))]
        scores = [scores_loss(logs[own][:, known], wanted[own]) for own in lists if own.any()]
        return form + (torch.stack(scores).sum() / len(labels) if scores else 0.0)


def scores_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The loss of one list.

    Args:
        logits: (candidates, 100) of each score.
        wanted: (candidates,) the teacher's scores.
    """
    logs = torch.log_softmax(logits, -1)
    scores = torch.arange(100, device=logits.device)
    blurred = torch.softmax(-((scores - wanted[:, None]) ** 2) / (2 * BLUR**2), -1)
    copied = -(blurred * logs).sum(-1).mean()
    said, taught = (torch.log_softmax(each / FACTOR, -1) for each in (logs.exp() @ scores.float(), wanted.float()))
    return copied + (taught.exp() * (taught - said)).sum()

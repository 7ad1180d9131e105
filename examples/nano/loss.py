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
        known = torch.tensor(score_ids(self.processing_class))
        score = torch.full((len(self.processing_class),), -1).index_put((known,), torch.arange(100))
        score = torch.where(labels >= 0, score[labels.clamp(min=0)], -1)
        rows, places = torch.nonzero((labels >= 0) & (score < 0), as_tuple=True)
        fixed = torch.nn.functional.cross_entropy(hidden[rows, places] @ model.lm_head.weight.T, labels[rows, places])
        taught = [at for at in (row.nonzero()[:, 0] for row in score >= 0)]
        parts = [
            scores_loss(hidden[row, at] @ model.lm_head.weight[known].T, score[row, at])
            for row, at in enumerate(taught)
            if len(at)
        ]
        return fixed + (torch.stack(parts).sum() / len(labels) if parts else 0.0)


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

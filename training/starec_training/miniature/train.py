"""Training the miniature: SFT from the blind teacher, then GRPO or one of its controls, all by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from starec_env import ranks
from starec_env.errors import TrainingError
from starec_env.replay.rewards import position_reward
from starec_training.miniature.data import Encoder, Example, Followed, Prompts
from starec_training.miniature.decode import decode
from starec_training.miniature.model import Answered, answer, packed, padded, states, text_logits

if TYPE_CHECKING:
    import torch

Method = Literal["sft", "true item", "grpo", "reinforce++"]


@dataclass
class Settings:
    """How long and how a stage trains."""

    method: Method = "sft"
    seconds: float = 60.0
    """CPU seconds of this process."""
    steps: int | None = None
    """Stop after so many steps instead; the learning rate then falls by steps."""
    learning_rate: float = 2e-3
    batch: int = 16
    """Ranking prompts a step."""
    reflecting: float = 0.15
    """Memory updates beside them, as a share of all prompts."""
    rehearsal: float = 1.0
    """Weight of the loss of memory updates that imitate the teacher's; GRPO's own, a mean over all tokens
    of a group, is so small that at 1 their noise takes half of its gain."""
    group: int = 256
    """Answers drawn to a prompt (GRPO, Reinforce++); one pass tells the policy, so they cost next to nothing."""
    beta: float = 1e-3
    """Weight of the KL divergence to the anchor; 0 for none."""
    texts: int = 0
    """Texts drawn to a memory update, each paid by what the policy makes of it at the next turn (GRPO); 0: memory
    updates go on imitating the teacher's."""
    reward: Callable[[int | None], float] = position_reward
    popular_first: float = 0.12
    """SFT begins with popularity as the teacher, and goes over to the blind teacher in this share of the time: what
    needs no history lets a model learn first to look a label up."""
    seed: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    """Filled while training: step, loss, kl, reward and so on."""


def train(
    model: Any,
    encoder: Encoder,
    prompts: Prompts,
    settings: Settings,
    anchor: Any = None,
    check: Callable[[int], None] | None = None,
    every: float = 120.0,
) -> Any:
    """Train a model in place; returns it.

    Args:
        model: What to train; all its weights.
        encoder: Of its tokenizer.
        prompts: Draws training users' prompts.
        settings: Method and length.
        anchor: The SFT model that GRPO and Reinforce++ stay near; not changed.
        check: Called with the step every `every` CPU seconds.
        every: See `check`.

    Raises:
        TrainingError: Nothing is trainable, an anchor is missing, or the loss is no longer a number.
    """
    import torch

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not sum(weight.numel() for weight in weights):
        raise TrainingError("the model has no trainable weight: load it to be trained")
    if settings.method in ("grpo", "reinforce++") and settings.beta and anchor is None:
        raise TrainingError(f"{settings.method} with beta={settings.beta} needs the anchor: give the SFT model, or 0")
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    head = torch.nn.Linear(model.config.hidden_size, 1) if settings.method == "sft" else None
    grouped = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": 0.02},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
        {"params": list(head.parameters()) if head else [], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW([part for part in grouped if part["params"]], settings.learning_rate, (0.9, 0.98))
    begun, checked, step = time.process_time(), 0.0, 0
    popular = np.log1p(prompts.evidence.counts)
    rankings = batches(prompts, encoder, settings.batch)
    n_updates = max(1, round(settings.batch * settings.reflecting))
    updates = batches(prompts, encoder, n_updates, reflecting=1.0)
    model.train()
    while (done := _progress(settings, step, time.process_time() - begun)) < 1.0:
        for part in optimiser.param_groups:
            part["lr"] = settings.learning_rate * min(1, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * done))
        ranking = next(rankings)
        if settings.method == "sft" and done < settings.popular_first:
            share = done / settings.popular_first
            for example in ranking:
                example.z = share * example.z + (1 - share) * (7 + 3 * (popular[example.candidates] - popular.mean()))
        said = answer(model, encoder, ranking, rng)
        reference = _anchored(anchor, said, encoder, ranking)
        parts = _LOSSES[settings.method](settings, encoder, ranking, said, reference)
        if head is not None:
            z = torch.tensor(np.stack([example.z for example in ranking])).float()
            parts["lines"] = _listwise(head(said.lines)[..., 0], z)
        parts["format"] = _format(model, encoder, ranking, said)
        if settings.texts:
            parts |= _remembered(settings, model, encoder, prompts.followed(n_updates), anchor)
        elif settings.reflecting:
            parts["written"] = settings.rehearsal * written(model, encoder, next(updates))
        loss = torch.stack([part for name, part in parts.items() if not name.startswith("log ")]).sum()
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {float(loss)} at step {step}: lower the learning rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        step += 1
        settings.log.append({"step": step} | {name: float(part.detach()) for name, part in parts.items()})
        if check and time.process_time() - begun > checked + every:
            checked = time.process_time() - begun
            model.eval()
            check(step)
            model.train()
            begun += time.process_time() - begun - checked
    return model.eval()


def batches(prompts: Prompts, encoder: Encoder, size: int, reflecting: float = 0.0) -> Iterator[list[Example]]:
    """Batches without end, each of prompts of like length, so that little is padding."""
    while True:
        drawn = sorted(encoder.encode(list(prompts.draw(16 * size, reflecting))), key=lambda example: len(example.ids))
        for part in prompts.rng.permutation(16).tolist():
            yield drawn[part * size : (part + 1) * size]


def _progress(settings: Settings, step: int, seconds: float) -> float:
    return step / settings.steps if settings.steps else seconds / settings.seconds


def _anchored(anchor: Any, said: Answered, encoder: Encoder, ranking: Sequence[Example]) -> torch.Tensor | None:
    # The anchor's log-probabilities of the very same scores, (prompts, candidates, 100).
    import torch

    if anchor is None:
        return None
    rows = np.arange(len(ranking))[:, None]
    places = np.array([example.begin for example in ranking])[:, None] + encoder.score_at
    with torch.no_grad():
        hidden = states(anchor, said.ids, said.mask)
        return torch.log_softmax(hidden[rows, places - 1] @ anchor.lm_head.weight[encoder.score_ids].T, -1)


# What each method minimises; all have one signature ---------------------------------------------------------------

Parts = dict[str, "torch.Tensor"]
# Parts of a loss by name, to be summed; those named "log ..." are only logged.


def _taught(
    settings: Settings, encoder: Encoder, ranking: Sequence[Example], said: Answered, reference: torch.Tensor | None
) -> Parts:
    """The teacher's scores, blurred a little, and its choice among the candidates."""
    import torch

    z = torch.tensor(np.stack([example.z for example in ranking])).float()
    wanted = torch.tensor(encoder.scores(z.numpy()))[..., None]
    blurred = torch.softmax(-((torch.arange(100) - wanted) ** 2) / (2 * _BLUR**2), -1).float()
    copied = -(blurred * said.scores).sum(-1).mean()
    return {"copied": copied, "order": _listwise(said.expected / encoder.scale[1], z)}


def _true_item(
    settings: Settings, encoder: Encoder, ranking: Sequence[Example], said: Answered, reference: torch.Tensor | None
) -> Parts:
    """The item that the user really took, first; scores stay as sharp as they were."""
    import torch

    target = torch.tensor([example.target for example in ranking])
    chosen = torch.nn.functional.cross_entropy(said.expected / encoder.scale[1], target)
    middle = said.expected.detach()[..., None]
    sharp = torch.softmax(-((torch.arange(100) - middle) ** 2) / (2 * _BLUR**2), -1)
    return {"chosen": chosen, "sharp": -0.2 * (sharp * said.scores).sum(-1).mean()}


def _grpo(
    settings: Settings, encoder: Encoder, ranking: Sequence[Example], said: Answered, reference: torch.Tensor | None
) -> Parts:
    """Equation 3, for a group of answers that one pass tells; one update a batch, so that every ratio is 1."""
    drawn, taken, rewards = rewarded(settings, ranking, said)
    spread = rewards.std(1, keepdim=True)
    advantage = (rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)
    kl = _divergence(said, reference)
    return {
        "gain": -(advantage * taken.mean(-1)).mean(),
        "anchored": settings.beta * kl,
        "log kl": kl,
        "log reward": rewards.mean(),
        "log no spread": (spread < 1e-6).float().mean(),
    }


def _remembered(settings: Settings, model: Any, encoder: Encoder, drawn: Sequence[Followed], anchor: Any) -> Parts:
    """Equation 3 for memory texts, each paid by the reward of the next turn's ranking with it (4.2.3).

    That reward is the mean over answers that the current policy draws; the same luck for all texts of a group, so that
    they differ by what they say.
    """
    import torch

    updates = encoder.encode([each.update for each in drawn])
    asked = [example.ids[: example.begin] for example in updates]
    texts = decode(model, asked, encoder.end, group=settings.texts, most=48, sample=True)
    read = [encoder.tokenizer.batch_decode(group, skip_special_tokens=True) for group in texts]
    follow = [each.then(text) for each, group in zip(drawn, read, strict=True) for text in group]
    rewards = expected_rewards(model, encoder, follow, settings).reshape(len(drawn), settings.texts)
    spread = rewards.std(1, keepdim=True)
    advantage = ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
    said = packed(asked, texts)
    logs = text_logits(model, said)
    token = logs.gather(-1, said.told[:, None])[:, 0]
    mean = torch.zeros(len(follow)).index_add(0, said.text, token) / torch.bincount(said.text)
    kl = logs.new_zeros(())
    if anchor is not None:
        with torch.no_grad():
            reference = text_logits(anchor, said)
        kl = (logs.exp() * (logs - reference)).sum(-1).mean()
    return {
        "gain of texts": -(advantage * mean).mean(),
        "texts anchored": settings.beta * kl,
        "log texts kl": kl,
        "log texts reward": rewards.mean(),
        "log texts spread": spread.mean(),
        "log texts no spread": (spread < 1e-6).float().mean(),
    }


def expected_rewards(model: Any, encoder: Encoder, follow: Sequence[Example], settings: Settings) -> torch.Tensor:
    """(n,) mean reward of 16 answers drawn to each ranking prompt, prompts in groups of `texts` with the same luck.

    The same luck for all of a group: what is drawn, and what is filled in (see `answer`).
    """
    import torch

    examples = encoder.encode(follow)
    with torch.no_grad():
        said = answer(model, encoder, examples, np.random.default_rng(0), alike=True)
        chances = said.scores.exp().cumsum(-1)
    luck = torch.rand(len(follow) // settings.texts, 1, 16, chances.shape[1], 1)
    grouped = chances.reshape(len(luck), settings.texts, 1, *chances.shape[1:])
    drawn = (luck.expand(-1, settings.texts, -1, -1, -1) > grouped).sum(-1).clamp(max=99).flatten(0, 1)
    target = torch.tensor([example.target for example in examples])[:, None].expand(-1, 16)
    worth = torch.tensor([settings.reward(rank) for rank in range(1, drawn.shape[-1] + 1)])
    return worth[ranks_of(drawn, target) - 1].mean(-1)


def _reinforce_pp(
    settings: Settings, encoder: Encoder, ranking: Sequence[Example], said: Answered, reference: torch.Tensor | None
) -> Parts:
    """The KL penalty within the return, and advantages normalised over the whole batch (Hu 2025)."""
    drawn, taken, rewards = rewarded(settings, ranking, said)
    returns = rewards
    if reference is not None:
        known = _of(reference, drawn)
        returns = rewards - settings.beta * (taken.detach() - known).sum(-1)
    advantage = (returns - returns.mean()) / (returns.std() + 1e-4)
    return {
        "gain": -(advantage * taken.mean(-1)).mean(),
        "log kl": _divergence(said, reference),
        "log reward": rewards.mean(),
    }


_LOSSES = {"sft": _taught, "true item": _true_item, "grpo": _grpo, "reinforce++": _reinforce_pp}
_BLUR = 2.5


def rewarded(
    settings: Settings, ranking: Sequence[Example], said: Answered
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answers drawn to prompts (prompts, group, candidates), their log-probabilities, and (prompts, group) rewards."""
    import torch

    chances = said.scores.detach().exp().cumsum(-1)
    luck = torch.rand(*chances.shape[:2], settings.group)
    drawn = torch.searchsorted(chances, luck).clamp(max=99).transpose(1, 2)
    target = torch.tensor([example.target for example in ranking])
    places = ranks_of(drawn, target[:, None].expand(-1, settings.group))
    worth = torch.tensor([settings.reward(rank) for rank in range(1, drawn.shape[-1] + 1)])
    return drawn, _of(said.scores, drawn), worth[places - 1]


def _of(scores: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    # (prompts, group, candidates) log-probabilities of drawn scores, from (prompts, candidates, 100).
    return scores.gather(-1, drawn.transpose(1, 2)).transpose(1, 2)


def _divergence(said: Answered, reference: torch.Tensor | None) -> torch.Tensor:
    # KL(policy || anchor) a token, exact.
    if reference is None:
        return said.scores.new_zeros(())
    return (said.scores.exp() * (said.scores - reference)).sum(-1).mean()


def _listwise(scores: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.kl_div(
        torch.log_softmax(scores, -1), torch.log_softmax(z, -1), log_target=True, reduction="batchmean"
    )


def _format(model: Any, encoder: Encoder, ranking: Sequence[Example], said: Answered) -> torch.Tensor:
    # What an answer is made of, of two of them: at a score's place any score, elsewhere the one right token.
    import torch

    rows = np.arange(min(2, len(ranking)))[:, None]
    places = np.array([example.begin for example in ranking[:2]])[:, None] + np.arange(len(encoder.skeleton))
    logs = torch.log_softmax(said.hidden[rows, places - 1] @ model.lm_head.weight.T, -1)
    fixed = np.setdiff1d(np.arange(len(encoder.skeleton)), encoder.score_at)
    right = logs[:, fixed, encoder.skeleton[fixed]].mean()
    return -right - logs[:, encoder.score_at][..., encoder.score_ids].logsumexp(-1).mean()


def written(model: Any, encoder: Encoder, examples: Sequence[Example]) -> torch.Tensor:
    """Cross-entropy of the answers of memory updates, a token."""
    import torch

    ids, mask = padded(examples, encoder.tokenizer.pad_token_id)
    begin = torch.tensor([example.begin for example in examples])[:, None]
    rows, places = torch.nonzero((torch.arange(ids.shape[1]) >= begin) & (mask > 0), as_tuple=True)
    logits = states(model, ids, mask)[rows, places - 1] @ model.lm_head.weight.T
    return torch.nn.functional.cross_entropy(logits, ids[rows, places])


# How good it is ---------------------------------------------------------------------------------------------------


def ranks_of(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1-based ranks of targets by score, ties in the order shown, as an answer is read.

    Args:
        scores: (..., candidates).
        target: (...,) 0-based positions.
    """
    import torch

    return torch.from_numpy(ranks.ranks_of(scores.numpy(), target.numpy(), np.arange(scores.shape[-1])))


def scored(model: Any, encoder: Encoder, examples: Sequence[Example], batch: int = 64) -> NDArray[np.int64]:
    """(examples, candidates) the likeliest score of each candidate."""
    import torch

    order = sorted(range(len(examples)), key=lambda place: len(examples[place].ids))
    scores = np.zeros((len(examples), len(encoder.score_at)), np.int64)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            said = answer(model, encoder, [examples[place] for place in places], rng)
            scores[places] = said.scores.argmax(-1).numpy()
    return scores


def judged(model: Any, encoder: Encoder, examples: Sequence[Example]) -> NDArray[np.int64]:
    """(examples,) rank that the likeliest score of each candidate gives to the true item."""
    import torch

    targets = torch.tensor([example.target for example in examples])
    places: NDArray[np.int64] = ranks_of(torch.tensor(scored(model, encoder, examples)), targets).numpy()
    return places

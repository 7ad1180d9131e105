"""What a group of answers to one prompt need not do over and over: read the prompt, and spell what the schema fixes.

TRL reads a prompt once for each of its group's answers, when it generates and again when it trains; on a short answer
to a long prompt that is most of a step. Nothing here changes what is computed: only how often.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from starec_env.errors import TrainingError

Rollout = Callable[[list[Any], Any], dict[str, Any]]
"""TRL's `rollout_func`: prompts and the trainer in, token ids out."""

_LEAST = 8


def share_prefixes(model: PreTrainedModel) -> None:
    """Let a causal language model compute once what rows of a batch share from their beginning.

    Hidden states and gradients stay what they were but for rounding (3e-6 in float32). It holds where no cache is
    wanted (training, reference log-probabilities) and where an empty one is to be filled (the prompt of a generation).
    Not with gradient checkpointing, which allows no cache.

    Args:
        model: Patched in place; inside a LoRA too, `model.get_base_model()`.
    """
    backbone = model.base_model
    plain = backbone.forward
    name = _cache_name(model)

    def forward(input_ids: Any = None, attention_mask: Any = None, use_cache: Any = None, **rest: Any) -> Any:
        cache = rest.pop(name, None)
        places = rest.pop("position_ids", None)
        known = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": places}

        def part(cache: Any, keep: bool, rows: Any = slice(None), columns: Any = slice(None), seen: Any = None) -> Any:
            shown = {key: None if value is None else value[rows, columns] for key, value in known.items()}
            if seen is not None and attention_mask is not None:
                shown["attention_mask"] = attention_mask[rows, seen]
            return plain(**shown, **{name: cache}, use_cache=keep, **rest)

        filled = cache is not None and cache.get_seq_length() > 0
        shaped = all(value is None or value.shape == input_ids.shape for value in (attention_mask, places))
        checkpointed = backbone.training and getattr(backbone, "gradient_checkpointing", False)
        if input_ids is None or filled or checkpointed or not shaped or (cache is None and use_cache is not False):
            return plain(**known, **{name: cache}, use_cache=use_cache, **rest)
        width, first, owner = shared_prefix(input_ids)
        if width < _LEAST or len(first) == len(input_ids):
            return part(cache, use_cache)
        own = DynamicCache(config=model.config) if cache is None else cache
        begun = part(own, True, first, slice(width))
        own.batch_select_indices(owner)
        hidden = begun.last_hidden_state[owner]
        if width < input_ids.shape[1]:
            ended = part(own, True, columns=slice(width, None), seen=slice(None))
            hidden = torch.cat([hidden, ended.last_hidden_state], 1)
        begun.last_hidden_state = hidden
        begun[name] = own if use_cache else None
        return begun

    backbone.forward = forward


def shared_prefix(ids: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """The prefix that costs the fewest tokens if each different one is computed once.

    Args:
        ids: (rows, tokens).

    Returns:
        Its length, (prefixes,) a row that has each, and (rows,) the number of each row's prefix.
    """
    rows, longest = ids.shape
    order = torch.tensor(sorted(range(rows), key=ids.tolist().__getitem__), device=ids.device)
    ordered = ids[order]
    alike = (ordered[1:] == ordered[:-1]).int().cumprod(1).sum(1)  # (rows - 1,) tokens shared with the row before
    lengths = torch.arange(longest + 1, device=ids.device)
    different = 1 + (alike[None] < lengths[:, None]).sum(1)
    width = int((different * lengths + rows * (longest - lengths)).argmin())
    new = torch.cat([alike.new_ones(1, dtype=torch.bool), alike < width])
    owner = torch.empty_like(order)
    owner[order] = new.cumsum(0) - 1
    return width, order[new], owner


def scores_only(example: str) -> Rollout:
    """A rollout held to the JSON object of scores: what the schema fixes is given, scores alone are drawn and trained.

    As guided decoding of a server does, but a prompt is read once for its group, and a score is one step. For
    tokenizers in which a score is one token: 0 to 99, or else the digits, which are then all the scores there are.

    Args:
        example: An answer to a list of the same length, e.g. '{"A":50,"B":50}'; what stands between its numbers is
            what stands between them in every answer.
    """
    between = re.split(r"\d+", example)

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
        pieces = [tokenizer.encode(text, add_special_tokens=False) for text in between]
        pieces[-1].append(tokenizer.eos_token_id)
        size = trainer.num_generations
        asked = [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in prompts]
        training = model.training
        model.eval()
        with torch.no_grad(), trainer.accelerator.autocast():
            scores = torch.tensor(_score_tokens(tokenizer), device=model.device)
            prefixes = [[*ids, *pieces[0]] for ids in asked[::size]]
            drawn = _drawn(model, prefixes, size, pieces[1:-1], scores, trainer.args.temperature)
        model.train(training)
        marks = [mark for piece in pieces[:-1] for mark in (*[0] * len(piece), 1)] + [0] * len(pieces[-1])
        answers = [_joined(pieces, own) for own in drawn.tolist()]
        return {"prompt_ids": asked, "completion_ids": answers, "logprobs": None, "env_mask": [marks] * len(asked)}

    return rollout


def _joined(pieces: Sequence[Sequence[int]], scores: Sequence[int]) -> list[int]:
    return [*(token for piece, score in zip(pieces, scores, strict=False) for token in (*piece, score)), *pieces[-1]]


def _score_tokens(tokenizer: Any) -> list[int]:
    for most in (100, 10):
        coded = [tokenizer.encode(str(score), add_special_tokens=False) for score in range(most)]
        if all(len(ids) == 1 for ids in coded):
            return [ids[0] for ids in coded]
    raise TrainingError(
        "not even the digits are single tokens of this tokenizer: draw answers by a server's guided decoding instead"
    )


def _drawn(
    model: Any, prefixes: Sequence[Sequence[int]], size: int, pieces: Sequence[Sequence[int]], scores: Any, heat: float
) -> torch.Tensor:
    # (prefixes * size, scores) tokens, each drawn from the policy's distribution over scores.
    backbone, head = model.base_model, model.get_output_embeddings().weight[scores]
    longest = max(map(len, prefixes))
    ids = [[scores[0].item()] * (longest - len(own)) + list(own) for own in prefixes]
    mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in prefixes], device=model.device)
    name = _cache_name(model)
    cache = DynamicCache(config=model.config)
    read = backbone(
        input_ids=torch.tensor(ids, device=model.device), attention_mask=mask, use_cache=True, **{name: cache}
    )
    cache.batch_repeat_interleave(size)
    mask, hidden, found = mask.repeat_interleave(size, 0), read.last_hidden_state[:, -1].repeat_interleave(size, 0), []
    for piece in (*pieces, None):
        logits = (hidden @ head.T).float() / heat
        found.append(scores[(logits - torch.empty_like(logits).exponential_().log()).argmax(-1)])  # Gumbel's trick
        if piece is not None:
            next_ = torch.cat([found[-1][:, None], torch.tensor(piece, device=mask.device).repeat(len(mask), 1)], 1)
            mask = torch.cat([mask, torch.ones_like(next_)], 1)
            read = backbone(input_ids=next_, attention_mask=mask, use_cache=True, **{name: cache})
            hidden = read.last_hidden_state[:, -1]
    return torch.stack(found, 1)


def _cache_name(model: Any) -> str:
    # transformers renamed the argument in 5.2x.
    return "cache" if "cache" in inspect.signature(type(model.base_model).forward).parameters else "past_key_values"


def head_on_answers() -> None:
    """Have TRL read the head at the answers' tokens alone on a CPU too, as it does on a GPU.

    TRL 1.16 scores every position elsewhere, prompts included, over the whole vocabulary: for a small model most of a
    step. It has no option for it, so this sets a private name of TRL's, for the process.
    """
    import trl.trainer.utils

    if hasattr(trl.trainer.utils, "_use_triton"):
        trl.trainer.utils._use_triton = lambda device: True

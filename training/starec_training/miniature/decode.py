"""Answers of the miniature's model token by token, quickly: one prompt's answers share its keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starec_training.miniature.model import quick_arithmetic

if TYPE_CHECKING:
    import torch

Allowed = Callable[[int], NDArray[np.integer[Any]]]
"""The tokens that may stand at a 0-based place of an answer."""


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    end: int,
    *,
    group: int = 1,
    most: int = 64,
    sample: bool = False,
    allowed: Allowed | None = None,
    batch: int = 64,
) -> list[list[list[int]]]:
    """Several answers to each prompt; quicker than transformers' own loop, twice in groups.

    Args:
        model: A `LlamaForCausalLM` with as many key heads as heads, on the CPU.
        prompts: Token ids.
        end: The token that ends an answer.
        group: Answers to a prompt.
        most: Tokens of an answer, at most.
        sample: Draw each token, from torch's global random state; else take the likeliest.
        allowed: Holds answers to some tokens.
        batch: Prompts at a time; of like length, so that little is padding.

    Returns:
        For each prompt `group` answers as token ids, with `end` if they came to it.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: list[list[list[int]]] = [[] for _ in prompts]
    with torch.no_grad(), quick_arithmetic():
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            tokens = _decode(model, [prompts[place] for place in places], end, group, most, sample, allowed)
            for place, answers in zip(places, tokens.tolist(), strict=True):
                found[place] = [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]
    return found


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    end: int,
    group: int,
    most: int,
    sample: bool,
    allowed: Allowed | None,
) -> torch.Tensor:
    # (prompts, group, tokens); what comes after an end means nothing.
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    inner, heads = model.model, model.config.num_attention_heads
    lengths = torch.tensor([len(ids) for ids in prompts])
    longest = int(lengths.max())
    ids = torch.tensor([[*ids, *[end] * (longest - len(ids))] for ids in prompts])
    known = torch.arange(longest) < lengths[:, None]
    read = inner(input_ids=ids, attention_mask=known.long(), use_cache=True)
    shared = [(layer.keys, layer.values) for layer in read.past_key_values.layers]
    hidden = read.last_hidden_state[torch.arange(len(prompts)), lengths - 1][:, None].expand(-1, group, -1)
    shape = (len(prompts), heads, group, most, model.config.hidden_size // heads)
    own = [tuple(torch.zeros(shape, dtype=shared[0][0].dtype) for _ in range(2)) for _ in shared]
    unknown = torch.zeros(known.shape, dtype=hidden.dtype).masked_fill(~known, float("-inf"))[:, None, None]
    told = torch.empty((len(prompts), group, most), dtype=torch.long)
    over = torch.zeros((len(prompts), group), dtype=torch.bool)
    for step in range(most):
        choice = torch.arange(len(model.lm_head.weight)) if allowed is None else torch.tensor(allowed(step))
        logits = (hidden @ model.lm_head.weight[choice].T).float()
        noise = torch.zeros_like(logits).exponential_().log() if sample else 0.0
        told[..., step] = choice[(logits - noise).argmax(-1)]  # Gumbel's trick
        over |= told[..., step] == end
        if over.all() or step == most - 1:
            return told[..., : step + 1]
        hidden = inner.embed_tokens(told[..., step])
        turn = inner.rotary_emb(hidden, (lengths + step)[:, None])
        for layer, (keys, values), (own_keys, own_values) in zip(inner.layers, shared, own, strict=True):
            part, normed = layer.self_attn, layer.input_layernorm(hidden)
            q, k, v = (
                weight(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
                for weight in (part.q_proj, part.k_proj, part.v_proj)
            )
            q, k = apply_rotary_pos_emb(q, k, *turn)
            own_keys[..., step, :], own_values[..., step, :] = k, v
            late_keys, late_values = own_keys[..., : step + 1, :], own_values[..., : step + 1, :]
            early = q @ keys.mT * part.scaling + unknown
            late = (q[..., None, :] @ late_keys.mT)[..., 0, :] * part.scaling
            weights = torch.cat([early, late], -1).softmax(-1)
            taken = weights[..., :longest] @ values
            taken = taken + (weights[..., None, longest:] @ late_values)[..., 0, :]
            hidden = hidden + part.o_proj(taken.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = inner.norm(hidden)
    raise AssertionError("unreachable")

"""The untrained model: a small Llama, initialised by hand from what training users took and from how answers are read.

It is no plain random start: without these settings labels were not looked up within four thousand prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizer import build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from starec_agents.tasks import labels
from starec_agents.tasks.titles import item_title
from starec_training.dataset import Row
from starec_training.features import Batch, Evidence

Floats = NDArray[np.float64]
SIZES = {"tiny": (64, 2, 2), "small": (128, 3, 4), "medium": (192, 4, 6), "large": (256, 5, 8)}
"""Width, layers and heads; with 3,500 tokens 0.3, 1.0, 2.4 and 4.9 million parameters."""

ROPE_THETA = 1e6

_SPREAD, _CODE = 0.03, 20


def tokens_for(evidence: Evidence, rows: Sequence[Row]) -> Any:
    """A tokenizer for a catalogue and for rows about it."""
    talks = [[*row.prompt, {"role": "assistant", "content": row.completion}] for row in rows]
    return build_tokenizer(evidence.dataset.items, talks)


def new_model(evidence: Evidence, tokenizer: Any, *, size: str = "medium", seed: int = 0) -> Any:
    """A `LlamaForCausalLM` that begins with what is known, so that two cores can teach it the rest in minutes.

    - A title's vector holds the leading eigenvectors of who took what together and nearby, its genres, time and
      popularity; all of it from training users and the catalogue. Scores lie on a smooth curve.
    - Each head matches (its queries are its keys) and copies what it finds: a candidate looks for titles like it.
    - One head of the first layer tells each title its label, and one of each later layer looks from where a score is
      asked to the title that was told that label.

    Args:
        evidence: Of the training users.
        tokenizer: Of `tokens_for`.
        size: One of SIZES.
        seed: Of what is random.
    """
    width, layers, heads = SIZES[size]
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rng = np.random.default_rng(seed)
    told, code = np.arange(width - 2 * _CODE, width).reshape(2, _CODE)
    one = int(told[0]) - 1
    table = _table(evidence, tokenizer, width, rng, told, code, one)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.tensor(table))
        _set_heads(model, told, code, one)
    return model


def _table(evidence: Evidence, tokenizer: Any, width: int, rng: Any, told: Any, code: Any, one: int) -> Floats:
    # (tokens, width): titles, scores, and a sign for each label's tokens, in a prompt and in an answer.
    table = rng.normal(0, _SPREAD, (len(tokenizer), width))
    titles = tokenizer.convert_tokens_to_ids([item_title(item) for item in evidence.dataset.items])
    table[titles] = _SPREAD * _titles(evidence, width, rng)
    waves = np.cos(np.pi * np.outer(np.arange(100) + 0.5, np.arange(width // 8)) / 100)
    table[score_ids(tokenizer), : width // 8] = 2 * _SPREAD * waves
    table[:, [*code, *told]] = 0.0
    table[:, one] = 3 * _SPREAD
    signs = rng.choice([-_SPREAD, _SPREAD], (26, _CODE)) * (width / _CODE) ** 0.5
    for sign, tokens in zip(signs, _label_tokens(tokenizer), strict=False):
        for token in tokens:
            table[token, :one], table[token, code] = 0.0, sign
    return table


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder in Hugging Face's format, in one move; vLLM and transformers load float16 as well."""
    part = folder.with_name(f"{folder.name}.part")
    weights = {name: value.to(dtype) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(part, state_dict=weights)
    tokenizer.save_pretrained(part)
    part.rename(folder)


def score_ids(tokenizer: Any) -> list[int]:
    """(100,) the token of each score."""
    found: list[int] = tokenizer.convert_tokens_to_ids([str(score) for score in range(100)])
    return found


def _label_tokens(tokenizer: Any) -> Iterator[set[int]]:
    # For each label, the tokens that end just before its title in a prompt, or before its score in an answer.
    vocabulary = tokenizer.get_vocab()
    for label in labels(20):
        ends = f'"{label}":', f"{label}. "
        yield {token for text, token in vocabulary.items() if text.endswith(ends)}


def _set_heads(model: Any, told: Any, code: Any, one: int) -> None:
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.normal_(0, 0.9 / width**0.5)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.v_proj.weight.normal_(0, 0.4 / width**0.5)
        attention.o_proj.weight.copy_(0.2 * attention.v_proj.weight.T)
        attention.o_proj.weight[one:] = 0.0
        layer.mlp.down_proj.weight.zero_()
    half = width // heads // 2
    first = model.model.layers[0].self_attn
    for weight in (first.q_proj.weight, first.k_proj.weight, first.v_proj.weight):
        weight[: 2 * half] = 0.0
    for pair in range(4):  # turns of RoPE that agree at a distance of 1 alone
        turn = ROPE_THETA ** (-pair / half)
        first.k_proj.weight[pair, one] = 2.6
        first.q_proj.weight[pair, one] = 2.6 * math.cos(turn)
        first.q_proj.weight[pair + half, one] = -2.6 * math.sin(turn)
    first.o_proj.weight[:, : 2 * half] = 0.0
    first.v_proj.weight[range(_CODE), code] = 1.0
    first.o_proj.weight[told, range(_CODE)] = 0.032
    slow = [place for place in range(2 * half) if place % half >= half - _CODE // 2]  # RoPE hardly turns these
    for depth, layer in enumerate(model.model.layers[1:]):
        attention, gain = layer.self_attn, 0.7 * 1.5**depth * (192 / width) ** 0.5  # the code fades as layers add
        for weight, columns in ((attention.q_proj.weight, code), (attention.k_proj.weight, told)):
            weight[: 2 * half] = 0.0
            weight[slow, columns] = gain


def _titles(evidence: Evidence, width: int, rng: np.random.Generator) -> Floats:
    n, third = evidence.dataset.n_items, width // 3
    each, parts = np.arange(n), []
    for pairs in _similar(evidence):
        pairs[each, each] = 0.0
        values, vectors = np.linalg.eigh(pairs + pairs.T)
        lead = np.argsort(-values)[:third]
        parts.append(vectors[:, lead] * np.sqrt(values[lead].clip(0)))
    years = np.nan_to_num((evidence.years - 1985.0) / 15.0)
    facts = np.column_stack([evidence.kinds * 2, years, years**2 - 1, np.log1p(evidence.counts) - 3])
    facts = facts @ rng.normal(size=(facts.shape[1], width - 2 * third))
    table = np.column_stack([part / part.std(1, keepdims=True).clip(1e-9) for part in (*parts, facts)])
    return table + rng.normal(0, 0.3, table.shape)


def _similar(evidence: Evidence) -> Iterator[Floats]:
    # (items, items) of what the teacher sees in a candidate after a history of one item: taken together, taken nearby.
    each = np.arange(evidence.dataset.n_items)
    found = []
    for part in np.array_split(each, 32):
        alone, every = part[:, None], np.tile(each, (len(part), 1))
        batch = Batch(np.full(len(part), -1), alone, np.ones(alone.shape, bool), every)
        found.append(np.expm1(evidence.features(batch)[..., :2]))
    yield from np.moveaxis(np.concatenate(found), -1, 0)

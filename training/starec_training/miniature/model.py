"""A small Llama whose title vectors begin where the training users' streams put them; its answers in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starec_training.features import Batch, Evidence
from starec_training.miniature.data import Encoder, Example
from starec_training.precision import bfloat16_is_quicker

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
SIZES = {"small": (128, 3, 4), "medium": (192, 4, 6), "large": (256, 5, 8)}
"""Width, layers and heads; with 3,500 tokens 1.0, 2.4 and 4.9 million parameters."""

ROPE_THETA = 1e6

_SPREAD, _CODE = 0.03, 20


def new_model(evidence: Evidence, encoder: Encoder, shown: Example, size: str = "medium", seed: int = 0) -> Any:
    """A `LlamaForCausalLM` that begins with what is known, so that two cores can teach it the rest in minutes.

    - A title's vector holds the leading eigenvectors of who took what together and nearby, its kinds, time and
      popularity; all of it from training users and the catalogue. Scores lie on a smooth curve.
    - Each head matches (its queries are its keys) and copies what it finds: a candidate looks for titles like it.
    - One head of the first layer tells each title its label, and one of each later layer looks from where a score is
      asked to the title that was told that label. Without them, labels were not learned within four thousand prompts.

    Args:
        evidence: Of the training users.
        encoder: Of the tokenizer.
        shown: Any encoded ranking prompt.
        size: One of SIZES.
        seed: Of what is random.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads = SIZES[size]
    torch.manual_seed(seed)
    tokenizer = encoder.tokenizer
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
    table = rng.normal(0, _SPREAD, (len(tokenizer), width))
    table[encoder.title_ids] = _SPREAD * _titles(evidence, width, rng)
    waves = np.cos(np.pi * np.outer(np.arange(100) + 0.5, np.arange(width // 8)) / 100)
    table[encoder.score_ids, : width // 8] = 2 * _SPREAD * waves
    told, code = np.arange(width - 2 * _CODE, width).reshape(2, _CODE)
    one = int(told[0]) - 1
    table[:, [*code, *told]] = 0.0
    table[:, one] = 3 * _SPREAD
    pairs = zip(encoder.skeleton[encoder.score_at - 1], np.array(shown.ids)[encoder.titles_at(shown) - 1], strict=True)
    signs = rng.choice([-_SPREAD, _SPREAD], (len(encoder.score_at), _CODE)) * (width / _CODE) ** 0.5
    for sign, tokens in zip(signs, pairs, strict=True):
        for token in tokens:
            table[token, :one], table[token, code] = 0.0, sign
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.tensor(table))
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
            first.q_proj.weight[pair, one], first.q_proj.weight[pair + half, one] = (
                2.6 * math.cos(turn),
                -2.6 * math.sin(turn),
            )
        first.o_proj.weight[:, : 2 * half] = 0.0
        first.v_proj.weight[range(_CODE), code] = 1.0
        first.o_proj.weight[told, range(_CODE)] = 0.032
        slow = [place for place in range(2 * half) if place % half >= half - _CODE // 2]  # RoPE hardly turns these
        for depth, layer in enumerate(model.model.layers[1:]):
            attention, gain = layer.self_attn, 0.7 * 1.5**depth * (192 / width) ** 0.5  # the code fades as layers add
            for weight, columns in ((attention.q_proj.weight, code), (attention.k_proj.weight, told)):
                weight[: 2 * half] = 0.0
                weight[slow, columns] = gain
    return model


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


@dataclass
class Answered:
    """What a model says in one pass to some ranking prompts."""

    scores: torch.Tensor
    """(prompts, candidates, 100) log-probability of each score, among scores."""
    lines: torch.Tensor
    """(prompts, candidates, width) what it holds at each candidate's title."""
    hidden: torch.Tensor
    """(prompts, tokens, width)."""
    ids: torch.Tensor
    """(prompts, tokens), padded on the right."""
    mask: torch.Tensor
    """(prompts, tokens) 0 where padding is."""

    @property
    def expected(self) -> torch.Tensor:
        """(prompts, candidates) mean score."""
        import torch

        return self.scores.exp() @ torch.arange(100.0)


def answer(
    model: Any, encoder: Encoder, examples: Sequence[Example], rng: np.random.Generator, alike: bool = False
) -> Answered:
    """The distribution of every score of a ranking, from one pass.

    Scores that stand earlier in an answer are filled in at random, so a trained model learns to give each score for
    itself, whatever the others; a pass then tells the whole policy, and any number of answers can be drawn from it.

    Args:
        model: The model.
        encoder: Of its tokenizer.
        examples: Encoded ranking prompts.
        rng: Of what is filled in.
        alike: Fill in the same for all prompts.
    """
    import torch

    ids, mask = padded(examples, encoder.tokenizer.pad_token_id)
    rows = np.arange(len(examples))[:, None]
    begin = np.array([example.begin for example in examples])[:, None]
    places = begin + encoder.score_at
    ids[rows, places] = torch.tensor(rng.choice(encoder.score_ids, places[0].shape if alike else places.shape))
    hidden = states(model, ids, mask)
    logits = hidden[rows, places - 1] @ model.lm_head.weight[encoder.score_ids].T
    lines = hidden[rows, np.stack([encoder.titles_at(example) for example in examples])]
    return Answered(torch.log_softmax(logits.float(), -1), lines, hidden, ids, mask)


def quick_arithmetic(device: str = "cpu") -> Any:
    """A context in which products are computed in bfloat16 where that is quicker, else in float32.

    A processor without instructions for bfloat16 takes tens of times as long in it, so one product of each is timed.
    """
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_quicker(device))


def states(model: Any, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
    """(prompts, tokens, width) the last hidden states, computed in the quicker precision.

    Args:
        model: The model.
        ids: (prompts, tokens).
        mask: (prompts, tokens), 0 where padding is; or (prompts, 1, tokens, tokens), what each token sees.
        places: (prompts, tokens) of the tokens in their texts, if they aren't those in the row.
    """
    with quick_arithmetic(ids.device.type):
        read = model.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
    hidden: torch.Tensor = read.last_hidden_state.float()
    return hidden


@dataclass
class Packed:
    """Several texts behind each prompt, so that a prompt is read once for all of them."""

    ids: torch.Tensor
    """(prompts, tokens): the prompt, then its texts one after another."""
    sees: torch.Tensor
    """(prompts, 1, tokens, tokens): each text sees its prompt and itself."""
    places: torch.Tensor
    """(prompts, tokens)."""
    before: torch.Tensor
    """(2, texts' tokens) row and column of the token that each token of a text follows."""
    told: torch.Tensor
    """(texts' tokens,) the tokens themselves."""
    text: torch.Tensor
    """(texts' tokens,) the number of the text that each is of, over all prompts."""


def packed(prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[Sequence[int]]]) -> Packed:
    """Prompts, each with its texts, as token ids."""
    import torch

    longest = max(len(prompt) + sum(map(len, own)) for prompt, own in zip(prompts, texts, strict=True))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    places, part = torch.zeros_like(ids), torch.full_like(ids, -1)
    before, told, number = [], list[int](), list[int]()
    count = 0
    for row, (prompt, own) in enumerate(zip(prompts, texts, strict=True)):
        at = len(prompt)
        ids[row, :at], places[row, :at], part[row, :at] = torch.tensor(prompt), torch.arange(at), 0
        for which, text in enumerate(own):
            stop = at + len(text)
            ids[row, at:stop] = torch.tensor(text)
            places[row, at:stop] = torch.arange(len(prompt), len(prompt) + len(text))
            part[row, at:stop] = which + 1
            before += [(row, len(prompt) - 1), *((row, place) for place in range(at, stop - 1))]
            told += text
            number += [count] * len(text)
            at, count = stop, count + 1
    sees = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    sees &= torch.ones(longest, longest, dtype=torch.bool).tril()
    return Packed(ids, sees[:, None], places, torch.tensor(before).T, torch.tensor(told), torch.tensor(number))


def text_logits(model: Any, said: Packed) -> torch.Tensor:
    """(texts' tokens, vocabulary) log-probabilities of what may stand at each place of the texts."""
    import torch

    hidden = states(model, said.ids, said.sees, said.places)[said.before[0], said.before[1]]
    return torch.log_softmax(hidden @ model.lm_head.weight.T, -1)


def padded(examples: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and the mask of what is no padding; both (examples, longest)."""
    import torch

    longest = max(len(example.ids) for example in examples)
    ids = torch.tensor([example.ids + [pad] * (longest - len(example.ids)) for example in examples])
    lengths = torch.tensor([len(example.ids) for example in examples])
    return ids, (torch.arange(longest) < lengths[:, None]).long()


def save(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write a folder in Hugging Face's format (float16 weights), as vLLM and transformers load it."""
    import torch

    _without_bars()
    Path(folder).mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.float16) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def load(folder: str | Path) -> tuple[Any, Any]:
    """A model, in float32 to go on training, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    _without_bars()
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def _without_bars() -> None:
    # Of parts of files that take milliseconds, in the middle of a training's own lines.
    from transformers.utils import logging

    logging.disable_progress_bar()

"""A small vocabulary for one catalogue: titles, attributes, numbers and the prompts' own phrases are one token each.

All of them are *added* tokens over a byte-level BPE with GPT-2's pre-tokeniser, so Hugging Face and llama.cpp cut a
prompt alike: added tokens first, the longest that fits, and what is left by bytes and merges. A title that is one token
is nearly an item id: a model learns what goes with it, and nothing of titles that its catalogue lacks, which fall into
pieces of text that it hardly knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from starec_agents.llm import Message
from starec_agents.tasks.titles import item_line, item_title
from starec_env.types import Item
from starec_training.features import kinds_of

PAD, END = "<|pad|>", "<|end|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
N_SCORES = 100
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The chat template: a role's token, the text, and the token that ends a turn."""

_MERGES = 256
_LEAST = 20


def build_tokenizer(items: Sequence[Item], conversations: Sequence[Sequence[Message]]) -> Any:
    """A `PreTrainedTokenizerFast` for a catalogue.

    Args:
        items: The catalogue. Each title, each item's attributes, each genre, each number below 100 and each decade
            becomes a token.
        conversations: Prompts with answers. Their system messages become tokens, and so does what recurs in the others
            between titles, attributes and numbers: the prompts' wording is told in one place alone.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + _MERGES, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(map(item_title, items), trainer)
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    system = [message["content"] for prompt in conversations for message in prompt if message["role"] == "system"]
    known = dict.fromkeys([*map(item_title, items), *attribute_texts(items), *_kinds(items), *system])
    known |= dict.fromkeys([f"{year}s" for year in range(1900, 2030, 10)] + [str(n) for n in range(N_SCORES)])
    core.add_tokens([AddedToken(text, normalized=False) for text in known])
    others = (message["content"] for prompt in conversations for message in prompt if message["role"] != "system")
    counts = Counter(phrase for text in others for phrase in _phrases(core, text))
    phrases = [phrase for phrase, count in counts.items() if count >= _LEAST and len(phrase) > 1]
    core.add_tokens([AddedToken(text, normalized=False) for text in phrases])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def attribute_texts(items: Sequence[Item]) -> list[str]:
    """What prompts show of each item behind its title, e.g. " | Action, Crime", each once."""
    texts = (item_line(item, title)[len(title) :] for item in items for title in [item_title(item)])
    return [text for text in dict.fromkeys(texts) if text]


def _kinds(items: Sequence[Item]) -> list[str]:
    return sorted({kind for item in items for kind in kinds_of(item)})


def _phrases(core: Any, text: str) -> Iterator[str]:
    # What stands between known things.
    added = core.get_added_tokens_decoder()
    coded = core.encode(text, add_special_tokens=False)
    start = 0
    for token, (begin, end) in zip(coded.ids, coded.offsets, strict=True):
        if token in added:
            if begin > start:
                yield text[start:begin]
            start = end
    if start < len(text):
        yield text[start:]

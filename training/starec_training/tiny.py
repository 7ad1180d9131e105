"""A model of half a million parameters, made from a config: the whole road on two cores, in minutes, without a hub.

It learns nothing worth having; it is for rehearsals and tests of everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

VOCABULARY = 3_000
"""Tokens of the byte-level BPE; half of the parameters are their vectors."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny(folder: Path, texts: Iterable[str], *, context: int = 8192, seed: int = 0) -> Path:
    """Write a random Qwen2 with a tokenizer trained on some texts, in Hugging Face's format.

    Args:
        folder: Receives the model.
        texts: What the tokenizer is trained on: prompts and answers as the model will meet them.
        context: Most tokens of a prompt and its answer.
        seed: Of the weights.

    Returns:
        The folder.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the model.")
def tiny(out: Path) -> None:
    """Make a random model of half a million parameters, for rehearsals; its words are those of MovieLens' prompts.

    Example: starec train tiny --out runs/tiny/base
    """
    from starec_agents.tasks import rank_messages, start_memory
    from starec_env import load_dataset, prepare
    from starec_env.replay.stream import Stream

    stream = Stream(prepare(load_dataset("ml-latest-small")))
    queries = (stream.turns(int(user))[-1].query for user in stream.users[:60])
    prompts = (rank_messages(query, start_memory(query)) for query in queries)
    click.echo(f"made: {write_tiny(out, (message['content'] for prompt in prompts for message in prompt))}")

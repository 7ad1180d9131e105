"""A tiny policy made here, of a tiny data set: no hub, no network, seconds on one core."""

import os
from pathlib import Path

import pytest
from support import make_dataset
from support_training import AGENT

pytest.importorskip("trl", reason="needs the 'train' extra")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from starec_agents.runs.population import run_population  # noqa: E402
from starec_env.types import Dataset, Id
from starec_training.dataset import Rows, run_rows, with_turns  # noqa: E402
from starec_training.features import Evidence  # noqa: E402
from starec_training.rule_teacher import RuleTeacher  # noqa: E402

torch.set_num_threads(1)

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def films() -> Dataset:
    """24 users x 14 ratings of 40 films."""
    return make_dataset(n_users=24, n_items=40)


@pytest.fixture(scope="session")
def train_users(films: Dataset) -> list[Id]:
    return with_turns(films, films.user_ids[:18].tolist(), n_candidates=4, split="train")


@pytest.fixture(scope="session")
def evidence(films: Dataset, train_users: list[Id]) -> Evidence:
    return Evidence(films, train_users)


@pytest.fixture(scope="session")
def taught(films: Dataset, evidence: Evidence, train_users: list[Id], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The blind teacher's rows, compact: 4 candidates, 2 films of history."""
    out = tmp_path_factory.mktemp("taught") / "run"
    options = {"users": train_users, "n_candidates": 4, "split": "train", "targets": "liked", "progress": False}
    run_population(films, RuleTeacher(evidence).agent(**AGENT), out=out, **options)
    return run_rows(out, films)


@pytest.fixture(scope="session")
def tiny(taught: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a tokenizer trained on the rows."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = [text for row in taught for text in (*(m["content"] for m in row.prompt), row.completion)]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def student(tiny: Path, taught: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy after SFT on the teacher's rows: it has the formats, and little else."""
    from starec_training.sft import paper_sft, train_sft

    out = tmp_path_factory.mktemp("student")
    config = paper_sft(
        output_dir=str(out),
        learning_rate=1e-2,
        max_steps=70,
        per_device_train_batch_size=8,
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
        warmup_steps=10,
        bf16=False,
    )
    final = train_sft(tiny, taught, config)
    assert final is not None
    return final

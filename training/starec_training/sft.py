"""SFT anchoring (4.2.1): the student learns the teacher's answers, by TRL's SFTTrainer."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from starec_env.data.splits import Split
from starec_env.errors import unknown
from starec_env.types import Id
from starec_training.checkpoints import (
    FINAL,
    Guard,
    StageConfig,
    card_of,
    check_savable,
    check_trainable,
    claim,
    device_settings,
    load_policy,
    rows_hash,
    save_final,
)
from starec_training.dataset import Row, Rows, check_apart, kept_apart
from starec_training.rendering import Template, encode, fitting

LEARNING_RATES = {"0.5B": 1e-4, "1.5B": 1e-4, "7B": 1e-5}
"""Of the paper's sizes (5.1.4)."""


def paper_settings(size: str = "0.5B") -> dict[str, Any]:
    """The paper's SFT (5.1.4) as fields of SFTConfig: 3 epochs, sequences of 16384 tokens; loss on completions alone.

    Batch size, schedule and warm-up are not given; TRL's defaults stand.

    Raises:
        UnknownName: The paper has no such size.
    """
    if size not in LEARNING_RATES:
        raise unknown("size in the paper", size, LEARNING_RATES)
    return {
        "learning_rate": LEARNING_RATES[size],
        "num_train_epochs": 3,
        "max_length": 16384,
        "completion_only_loss": True,
        "logging_steps": 1,
        "save_steps": 50,
        "save_total_limit": 2,
        **device_settings(),
    }


def paper_sft(size: str = "0.5B", **overrides: Any) -> SFTConfig:
    """TRL's SFTConfig with the paper's settings for a model size; any field can be overridden."""
    return SFTConfig(**{**paper_settings(size), **overrides})


def lora(rank: int, alpha: int | None = None, targets: str | list[str] = "all-linear") -> LoraConfig:
    """LoRA without dropout, so that KL to the anchor is exactly 0 at first; alpha is twice the rank by default."""
    return LoraConfig(
        r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )


def tokens(rows: Iterable[Row], tokenizer: Any) -> datasets.Dataset:
    """Rows as TRL takes them when all is tokenized: each prompt as generation meets it, then the answer to learn.

    Columns: `input_ids`, and `completion_mask`, 1 where a token is the answer's or ends its turn.
    """
    template = Template.of(tokenizer)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    for row in rows:
        prompt, answer = encode(tokenizer, row.prompt), template.answer(tokenizer, row.completion)
        columns["input_ids"].append(prompt + answer)
        columns["completion_mask"].append([0] * len(prompt) + [1] * len(answer))
    return datasets.Dataset.from_dict(columns)


def stage_of(
    model: str | Path,
    rows: Rows,
    config: SFTConfig,
    adapter: LoraConfig | None,
    eval_rows: Rows | None,
    heldout: Collection[Id],
    split: Split | None,
    switches: Mapping[str, Any],
) -> StageConfig:
    """What `train_sft` with these arguments is; raises TrainingError if a user is where it must not be."""
    check_apart((row.snapshot.user_id for row in rows), [*heldout, *kept_apart(split)])
    if eval_rows is not None:
        check_apart((row.snapshot.user_id for row in rows), {row.snapshot.user_id for row in eval_rows})
    known = {"adapter": adapter, "chat_template": switches, "eval_rows_hash": rows_hash(eval_rows)}
    return StageConfig.of("sft", model, config, rows, **known)


def train_sft(
    model: str | Path,
    rows: Rows,
    config: SFTConfig,
    *,
    adapter: LoraConfig | None = None,
    eval_rows: Rows | None = None,
    heldout: Collection[Id] = (),
    split: Split | None = None,
    minutes: float | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    trainer_class: type[SFTTrainer] | None = None,
) -> Path | None:
    """Teach a model the rows' answers. A killed or stopped run goes on from its last checkpoint when called again.

    Args:
        model: Folder, hub id or "smollm2"; an adapter's folder is trained on.
        rows: From a teacher.
        config: `paper_sft(...)`, or any SFTConfig.
        adapter: Train LoRA instead of all weights.
        eval_rows: Of other users; with them the loss is watched for overfit (set eval_strategy and eval_steps).
        heldout: Users kept for testing.
        split: Who trains and who is tested; it goes on the model's card.
        minutes: Stop with a checkpoint after so long.
        chat_template_kwargs: The template's switches, which stay with the trained model; see `rendering.settle`.
        trainer_class: A subclass with a loss of its own.

    Returns:
        The folder of the trained model, or None if the time ran out before the end.

    Raises:
        TrainingError: A held-out user is among the rows, no row fits, nothing is trainable, or the folder isn't ours.
    """
    switches, out = chat_template_kwargs or {}, Path(config.output_dir)
    stage = stage_of(model, rows, config, adapter, eval_rows, heldout, split, switches)
    checkpoint = claim(out, stage)
    if (out / FINAL).exists():
        return out / FINAL
    policy, tokenizer = load_policy(model, switches)
    rows = fitting(rows, tokenizer, max_length=config.max_length)
    trainer = (trainer_class or SFTTrainer)(
        model=policy,
        args=config,
        train_dataset=tokens(rows, tokenizer),
        eval_dataset=None if eval_rows is None else tokens(eval_rows, tokenizer),
        processing_class=tokenizer,
        peft_config=copy.deepcopy(adapter),  # peft fills it in, and a resumed stage compares it
        callbacks=[Guard(minutes)],
    )
    check_trainable(trainer.model)
    check_savable(trainer.accelerator)
    trainer.accelerator.print(str(rows))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return save_final(trainer, tokenizer, out, card_of(stage, rows, split, heldout))

"""SFT anchoring (4.2.1): the student learns the teacher's answers, by TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from starec_env.errors import unknown
from starec_env.types import Id
from starec_training.checkpoints import FINAL, Guard, check_trainable, claim, device_settings, load_policy
from starec_training.dataset import Rows, check_apart, fitting, to_dataset

LEARNING_RATES = {"0.5B": 1e-4, "1.5B": 1e-4, "7B": 1e-5}
"""Of the paper's sizes (5.1.4)."""


def paper_settings(size: str = "0.5B") -> dict[str, Any]:
    """The paper's SFT (5.1.4) as fields of SFTConfig: 3 epochs, sequences of 16384 tokens; loss on completions alone.

    Batch size, schedule and warm-up are not told; TRL's defaults stand.

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


def train_sft(
    model: str | Path,
    rows: Rows,
    config: SFTConfig,
    *,
    adapter: LoraConfig | None = None,
    eval_rows: Rows | None = None,
    heldout: Collection[Id] = (),
    minutes: float | None = None,
    trainer_class: type[SFTTrainer] = SFTTrainer,
) -> Path | None:
    """Teach a model the rows' answers. A killed or stopped run goes on from its last checkpoint when called again.

    Args:
        model: Folder, hub id or "smollm2"; an adapter's folder is trained on.
        rows: From a teacher.
        config: `paper_sft(...)`, or any SFTConfig.
        adapter: Train LoRA instead of all weights.
        eval_rows: Of other users; with them the loss is watched for overfit (set eval_strategy and eval_steps).
        heldout: Users kept for testing.
        minutes: Stop with a checkpoint after so long.
        trainer_class: A subclass with a loss of its own.

    Returns:
        The folder of the trained model, or None if the time ran out before the end.

    Raises:
        TrainingError: A held-out user is among the rows, no row fits, nothing is trainable, or the folder isn't ours.
    """
    check_apart((row.snapshot.user_id for row in rows), heldout)
    if eval_rows is not None:
        check_apart((row.snapshot.user_id for row in rows), {row.snapshot.user_id for row in eval_rows})
    out = Path(config.output_dir)
    settings = {"stage": "sft", "model": str(model), "lora": adapter.r if adapter else 0}
    settings |= {name: getattr(config, name) for name in ("learning_rate", "max_length", "seed", "num_train_epochs")}
    checkpoint = claim(out, settings, rows)
    if (out / FINAL).exists():
        return out / FINAL
    policy, tokenizer = load_policy(model)
    rows = fitting(rows, tokenizer, max_length=config.max_length)
    columns = ["prompt", "completion"]
    trainer = trainer_class(
        model=policy,
        args=config,
        train_dataset=to_dataset(rows).select_columns(columns),
        eval_dataset=None if eval_rows is None else to_dataset(eval_rows).select_columns(columns),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Guard(minutes)],
    )
    check_trainable(trainer.model)
    trainer.accelerator.print(str(rows))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return finish(trainer, tokenizer, out)


def finish(trainer: Any, tokenizer: Any, out: Path) -> Path | None:
    """Save the trained model in one move if training is complete: a kill leaves no half of it."""
    if trainer.state.global_step < trainer.state.max_steps:
        return None
    model = trainer.accelerator.unwrap_model(trainer.model)
    part = out / f"{FINAL}.part"
    if trainer.is_world_process_zero():
        chosen = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(part, **chosen)
        tokenizer.save_pretrained(part)
        part.replace(out / FINAL)
    trainer.accelerator.wait_for_everyone()
    return out / FINAL

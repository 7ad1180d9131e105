"""What the training stages share: loading a policy, owning an output folder, stopping in time, warning early."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from starec_agents.runs.store import write_text
from starec_agents.serving.weights import NANO, SMOLLM2, find_folder
from starec_env.errors import StarecWarning, TrainingError
from starec_training.callbacks import symptoms
from starec_training.dataset import Rows, check_chat_template

FINAL = "final"
"""Sub-folder of a stage's output that holds the trained model; it is there when the stage is complete."""


def device_settings() -> dict[str, Any]:
    """TRL settings that follow from the machine: bfloat16 and gradient checkpointing on a GPU, neither without."""
    gpu = torch.cuda.is_available()
    return {"bf16": gpu, "gradient_checkpointing": gpu, "use_cpu": not gpu}


def load_policy(model: str | Path) -> tuple[Any, Any]:
    """A policy to train or to ask, and its tokenizer (padding on the left).

    Args:
        model: A folder in Hugging Face's format, an adapter's folder (it stays trainable), a hub id, "starec-nano" or
            "smollm2".
            Weights are held in float32; bfloat16 is for the arithmetic.

    Raises:
        TrainingError: It can't be loaded, or its tokenizer has no chat template.
    """
    where = find_folder(str(model), sys.executable) if model in (NANO, SMOLLM2) else str(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left")
        if (Path(where) / "adapter_config.json").exists():
            policy = AutoPeftModelForCausalLM.from_pretrained(where, is_trainable=True, dtype=torch.float32)
        else:
            policy = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't load {model}: {str(error).splitlines()[0]}") from None
    check_chat_template(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return policy, tokenizer


def check_trainable(model: Any) -> int:
    """How many parameters train; raises TrainingError if none does."""
    count: int = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not count:
        raise TrainingError(
            "no parameter is trainable, so training would change nothing: load an adapter with is_trainable=True"
        )
    return count


def claim(out: str | Path, settings: Mapping[str, Any], rows: Rows) -> Path | None:
    """Make a stage's output folder this run's own, or go on with it.

    Args:
        out: The folder; `stage.json` in it says whose it is.
        settings: What makes the run itself.
        rows: What it learns from.

    Returns:
        The last complete checkpoint to resume from, or None.

    Raises:
        TrainingError: The folder belongs to another run.
    """
    folder, path = Path(out), Path(out) / "stage.json"
    known = {"rows": len(rows), "rows_hash": digest(row.model_dump_json() for row in rows)}
    wanted = json.loads(json.dumps({**settings, **known}, default=str))
    with PartialState().main_process_first():
        if not path.exists():
            if any(folder.glob("checkpoint-*")):
                raise TrainingError(f"{folder} holds checkpoints of a run that isn't ours: choose another output_dir")
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(wanted, indent=1) + "\n")
    found = json.loads(path.read_text(encoding="utf-8"))
    if different := [key for key in wanted if found.get(key) != wanted[key]]:
        key = different[0]
        raise TrainingError(
            f"{folder} belongs to another run: its {', '.join(different)} differ ({key} was {found.get(key)!r}, is "
            f"{wanted[key]!r}); resume with the same settings, or choose another output_dir"
        )
    return last_checkpoint(folder)


def digest(values: Iterable[Any]) -> str:
    """A short hash of some values in order."""
    return blake2b("\n".join(map(str, values)).encode(), digest_size=8).hexdigest()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole: a kill may leave a torn one, whose state is written last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (OSError, ValueError):
            continue
    return None


class Guard(TrainerCallback):  # type: ignore[misc]
    """Warns early, once for each symptom, and stops with a checkpoint when the time is up.

    Args:
        minutes: Stop after so long; None goes on to the end.
        anchored: The first step's KL must be 0, because the policy starts as its own reference.
    """

    def __init__(self, minutes: float | None = None, *, anchored: bool = False) -> None:
        self.stop_at = None if minutes is None else time.monotonic() + 60 * minutes
        self.anchored, self.warned = anchored, set[str]()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look at what has been logged."""
        kl = (logs or {}).get("kl")
        if self.anchored and state.global_step == 1 and kl is not None and abs(kl) > 1e-3:
            raise TrainingError(f"KL to the anchor is {kl:.4f} at the first step: the reference isn't the start model")
        if not state.is_world_process_zero:
            return
        for symptom, seen in symptoms(state.log_history).items():
            if symptom not in self.warned:
                self.warned.add(symptom)
                warnings.warn(f"{symptom}: {seen}", StarecWarning, stacklevel=2)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop in time, on all processes at the same step."""
        if self.stop_at is not None and _agreed(time.monotonic() >= self.stop_at):
            control.should_save = control.should_training_stop = True


def _agreed(decision: bool) -> bool:
    # Processes reach the deadline at different steps; the first one decides for all.
    if not torch.distributed.is_initialized():
        return decision
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([decision], dtype=torch.int, device=device)
    torch.distributed.broadcast(flag, 0)
    return bool(flag.item())

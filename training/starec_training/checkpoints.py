"""What the training stages share: loading and saving a policy, owning an output folder, stopping in time, warnings."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import AutoPeftModelForCausalLM, PeftConfig
from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from starec_agents.runs.config import check_same
from starec_agents.runs.store import write_text
from starec_agents.serving.card import ModelCard, find_card
from starec_agents.serving.weights import NANO, SMOLLM2, find_folder
from starec_env.data.splits import Split
from starec_env.errors import RunError, StarecWarning, TrainingError
from starec_env.types import Id
from starec_training.callbacks import symptoms
from starec_training.dataset import Rows
from starec_training.generation import ends_of, plain
from starec_training.precision import bfloat16_is_quicker
from starec_training.rendering import Template, settle

FINAL = "final"
"""Sub-folder of a stage's output that holds the trained model; it is there when the stage is complete."""


def device_settings() -> dict[str, Any]:
    """TRL settings that follow from the machine: the quicker precision, and gradient checkpointing on a GPU."""
    gpu = torch.cuda.is_available()
    return {"bf16": bfloat16_is_quicker("cuda" if gpu else "cpu"), "gradient_checkpointing": gpu, "use_cpu": not gpu}


def load_policy(
    model: str | Path, switches: Mapping[str, Any] | None = None, *, anchor: str | Path | None = None
) -> tuple[Any, Any]:
    """A policy to train or to ask, and its tokenizer (padding on the left).

    What its generation_config says of sampling is left out, so that all who ask it draw from its own probabilities, and
    the trained model is served as it was trained. The token that ends a turn of its chat template is one of its ends.

    Args:
        model: A folder in Hugging Face's format, an adapter's folder (it stays trainable), a hub id, "starec-nano" or
            "smollm2". Weights are held in float32; bfloat16 is for the arithmetic.
        switches: Of the chat template, as {"enable_thinking": False}; see `rendering.settle`.
        anchor: Where TRL finds the reference model, if it isn't the model itself.

    Raises:
        TrainingError: It can't be loaded, or its chat template can't render our prompts.
    """
    where, known = _where(model), _where(anchor or model)
    tokenizer = load_tokenizer(model, switches)
    try:
        if (Path(where) / "adapter_config.json").exists():
            policy = AutoPeftModelForCausalLM.from_pretrained(where, is_trainable=True, dtype=torch.float32)
        else:
            policy = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
            policy.config._name_or_path = known  # the name that TRL loads its reference by
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from None
    ends = {*ends_of(policy, tokenizer), Template.of(tokenizer).end[-1]}
    policy.generation_config = plain(policy.generation_config, sorted(ends))
    return policy, tokenizer


def load_tokenizer(model: str | Path, switches: Mapping[str, Any] | None = None) -> Any:
    """A policy's tokenizer alone; arguments and errors are those of `load_policy`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(_where(model), padding_side="left")
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from None
    settle(tokenizer, switches)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def count_parameters(model: str | Path) -> int:
    """How many parameters a policy has, an adapter's base model's without the adapter; no weights are loaded."""
    where = _where(model)
    try:
        if (Path(where) / "adapter_config.json").exists():
            where = str(PeftConfig.from_pretrained(where).base_model_name_or_path)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where))
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from None
    return sum(parameter.numel() for parameter in network.parameters())


def _where(model: str | Path) -> str:
    return find_folder(str(model), sys.executable) if model in (NANO, SMOLLM2) else str(model)


def _not_loaded(model: str | Path, error: Exception) -> TrainingError:
    return TrainingError(f"can't load {model}: {str(error).splitlines()[0]}")


def check_trainable(model: Any) -> int:
    """How many parameters train; raises TrainingError if none does."""
    count: int = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not count:
        raise TrainingError(
            "no parameter is trainable, so training would change nothing: load an adapter with is_trainable=True"
        )
    return count


class StageConfig(BaseModel):
    """All that changes what a stage trains; a resumed stage must have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["sft", "grpo", "reinforce++", "rounds"]
    model: str
    start: str | None = None
    rows: int = 0
    rows_hash: str | None = None
    eval_rows_hash: str | None = None
    dataset: str | None = None
    """Hash of the data set that rounds are collected from."""
    train_users: str | None = None
    """Hash of the ids of who is learned from."""
    adapter: Mapping[str, Any] | None = None
    chat_template: Mapping[str, Any] = {}
    """Its switches."""
    reward: str | None = None
    reward_funcs: tuple[str, ...] = ()
    refill: int | None = None
    follow_up_tokens: int | None = None
    max_prompt: int | None = None
    frozen: tuple[str, ...] = ()
    rounds: Mapping[str, Any] | None = None
    processes: int = 1
    trainer: Mapping[str, Any]
    """Fields of TRL's config, but for those that change nothing that is learned."""

    @classmethod
    def of(cls, stage: Any, model: object, config: Any, rows: Rows | None = None, **known: Any) -> StageConfig:
        """Describe a stage; `known` are further fields, an adapter as peft's config."""
        adapter = known.pop("adapter", None)
        shown = {name: getattr(config, name) for name in ("eos_token", "pad_token") if hasattr(config, name)}
        fields = {**config.to_dict(), **shown}  # which to_dict hides, as it does secrets
        return cls(
            stage=stage,
            model=str(model),
            rows=len(rows or ()),
            rows_hash=rows_hash(rows),
            adapter=adapter and {name: value for name, value in adapter.to_dict().items() if name != "inference_mode"},
            processes=PartialState().num_processes,
            trainer={name: value for name, value in fields.items() if not name.startswith(CHANGES_NOTHING)},
            **known,
        )

    def plain(self) -> dict[str, Any]:
        """What JSON holds of it."""
        found: dict[str, Any] = json.loads(json.dumps(self.model_dump(), default=_jsonable))
        return found


CHANGES_NOTHING = (
    "output_dir", "run_name", "project", "report_to", "disable_tqdm", "log_", "logging_", "num_completions_to_print",
    "save_", "hub_", "push_to_hub", "trackio_", "resume_from_checkpoint", "restore_callback", "do_", "eval_",
    "per_device_eval", "batch_eval", "bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "include_", "debug",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch", "dataloader_persistent",
    "dataloader_multiprocessing", "dataset_num_proc", "ddp_", "local_rank", "skip_memory", "use_cpu", "use_cache",
    "gradient_checkpointing", "activation_", "torch_empty_cache", "torch_compile", "enable_jit", "vllm_server_",
    "vllm_group_port", "vllm_gpu_memory", "vllm_enable_sleep",
)  # fmt: skip
"""How the names of TRL's fields begin that a resumed training may have otherwise."""


def claim(out: str | Path, config: StageConfig) -> Path | None:
    """Make a stage's output folder this run's own, or go on with it.

    Args:
        out: The folder; `stage.json` in it says whose it is.
        config: What makes the run itself.

    Returns:
        The last complete checkpoint to resume from, or None.

    Raises:
        TrainingError: The folder belongs to another run; names each setting that differs.
    """
    folder, path = Path(out), Path(out) / "stage.json"
    with PartialState().main_process_first():
        if not path.exists():
            check_claim(out, config)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(config.plain(), indent=1) + "\n")
    return check_claim(out, config)


def check_claim(out: str | Path, config: StageConfig) -> Path | None:
    """As `claim`, for a folder that may be claimed later: writes nothing."""
    folder, path = Path(out), Path(out) / "stage.json"
    if not path.exists():
        if any(folder.glob("checkpoint-*")):
            raise TrainingError(f"{folder} holds checkpoints of a run that isn't ours: choose another output_dir")
        return None
    try:
        check_same(config.plain(), json.loads(path.read_text(encoding="utf-8")), folder)
    except RunError as error:
        raise TrainingError(str(error)) from None
    return last_checkpoint(folder)


def _jsonable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)  # sets of module names in LoRA


def rows_hash(rows: Rows | None) -> str | None:
    """A hash of rows in order; None of none."""
    return digest(row.model_dump_json() for row in rows) if rows else None


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


def check_savable(accelerator: Any) -> None:
    """Raise TrainingError if the weights couldn't be gathered when training is over."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    zero = accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise TrainingError(
            "ZeRO-3 could not save the trained model: set stage3_gather_16bit_weights_on_model_save to true in the "
            "DeepSpeed configuration (zero3_save_16bit_model in accelerate's)"
        )


def card_of(config: StageConfig, rows: Rows, split: Split | None, heldout: Collection[Id] = ()) -> ModelCard:
    """The card of a stage's model: whom it learns from, by its rows, and who is kept from it, by its split."""
    users = tuple(dict.fromkeys(row.snapshot.user_id for row in rows))
    known = split or Split(train=users, test=tuple(heldout))
    return ModelCard(
        stage=config.stage,
        base_model=config.model,
        split=known.model_copy(update={"train": users}),
        settings=config.plain(),
        base=find_card(config.start, config.model),
    )


def save_final(trainer: Any, tokenizer: Any, out: Path, card: ModelCard) -> Path | None:
    """Save the trained model and its card in one move if training is complete: a kill leaves no half of it.

    All processes call it: where the model is sharded (FSDP, ZeRO-3), its weights are gathered from all of them.
    """
    if trainer.state.global_step < trainer.state.max_steps:
        return None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model = trainer.accelerator.unwrap_model(trainer.model)
    part = out / f"{FINAL}.part"
    if trainer.is_world_process_zero():
        chosen = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(part, state_dict=weights, **chosen)
        tokenizer.save_pretrained(part)
        card.save(part)
        part.replace(out / FINAL)
    trainer.accelerator.wait_for_everyone()
    return out / FINAL


class Guard(TrainerCallback):  # type: ignore[misc]
    """Warns early, once for each symptom, and stops with a checkpoint when the time is up.

    Args:
        minutes: Stop after so long; None goes on to the end.
        most_kl: Most KL to the anchor at the first step, where the policy starts as its own reference. None: it
            doesn't. The step must be logged (logging_first_step).
        groups: Whether advantages are normalised in each group, so that one of equal rewards teaches nothing.
    """

    def __init__(self, minutes: float | None = None, *, most_kl: float | None = None, groups: bool = True) -> None:
        self.stop_at = None if minutes is None else time.monotonic() + 60 * minutes
        self.most_kl, self.groups, self.warned = most_kl, groups, set[str]()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look at what has been logged."""
        kl = (logs or {}).get("kl")
        if self.most_kl is not None and state.global_step == 1 and kl is not None and abs(kl) > self.most_kl:
            raise TrainingError(f"KL to the anchor is {kl:.2g} at the first step: the reference isn't the start model")
        if not state.is_world_process_zero:
            return
        for symptom, seen in symptoms(state.log_history, groups=self.groups).items():
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

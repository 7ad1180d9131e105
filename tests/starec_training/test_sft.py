"""SFT: the paper's settings, loss on completions alone, killed and resumed to the same losses."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support_training import kill_when_there, logged, losses
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from starec_env.errors import StarecWarning, TrainingError, UnknownName
from starec_training.checkpoints import Guard, check_trainable, last_checkpoint, load_policy
from starec_training.dataset import Rows, write_rows
from starec_training.generation import generate
from starec_training.sft import lora, paper_sft, tokens, train_sft


def config(out: Path, **options: object) -> SFTConfig:
    settings = {"output_dir": str(out), "learning_rate": 3e-3, "max_steps": 3, "per_device_train_batch_size": 4}
    return paper_sft(**{**settings, "disable_tqdm": True, "bf16": False, **options})


@pytest.mark.parametrize(("size", "rate"), [("0.5B", 1e-4), ("1.5B", 1e-4), ("7B", 1e-5)])
def test_the_papers_settings_by_size(size: str, rate: float, tmp_path: Path) -> None:
    made = paper_sft(size, output_dir=str(tmp_path), seed=3)
    assert (made.learning_rate, made.max_length, made.num_train_epochs, made.seed) == (rate, 16384, 3, 3)
    assert made.completion_only_loss is True
    with pytest.raises(UnknownName, match="7B"):
        paper_sft("7b")


def test_the_student_has_learned_the_formats(student: Path, taught: Rows) -> None:
    model, tokenizer = load_policy(student)
    texts = [answer.text for answer in generate(model, tokenizer, [row.prompt for row in taught], max_tokens=40)]
    ranked = [row.snapshot.shown.parse(text, "compact") for row, text in zip(taught, texts, strict=True)
              if row.task == "rank"]  # fmt: skip
    assert sum(bool(ranking.order) for ranking in ranked) > 0.9 * len(ranked)
    updates = [text for row, text in zip(taught, texts, strict=True) if row.task == "reflect"]
    assert sum(text.startswith("Updated User description:") for text in updates) > 0.9 * len(updates)


def test_loss_is_on_the_completion_alone(tiny: Path, taught: Rows, tmp_path: Path) -> None:
    model, tokenizer = load_policy(tiny)
    data = tokens(taught.rows[:2], tokenizer)
    trainer = SFTTrainer(model=model, args=config(tmp_path), train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    for labels, ids in zip(batch["labels"], batch["input_ids"], strict=True):
        learned = tokenizer.decode(ids[labels != -100])
        assert learned in {row.completion + "<|end|>" for row in taught.rows[:2]}


def test_lora_trains_the_adapter_and_leaves_the_rest(student: Path, taught: Rows, tmp_path: Path) -> None:
    final = train_sft(student, taught, config(tmp_path), adapter=lora(4))
    assert final == tmp_path / "final"
    adapted, _ = load_policy(final)
    assert isinstance(adapted, PeftModel)
    assert 0 < check_trainable(adapted) < 0.5 * sum(p.numel() for p in adapted.parameters())
    base = AutoModelForCausalLM.from_pretrained(student).state_dict()
    kept = {name.replace(".base_layer", ""): value for name, value in adapted.base_model.model.state_dict().items()
            if "lora_" not in name}  # fmt: skip
    assert all(torch.equal(base[name], value) for name, value in kept.items())
    assert train_sft(student, taught, config(tmp_path), adapter=lora(4)) == final  # complete: nothing is done again


def test_nothing_trainable_is_refused(student: Path) -> None:
    model, _ = load_policy(student)
    assert check_trainable(model) == sum(p.numel() for p in model.parameters())
    with pytest.raises(TrainingError, match="is_trainable=True"):
        check_trainable(model.requires_grad_(False))


def test_a_killed_training_resumes_to_the_same_losses(student: Path, taught: Rows, tmp_path: Path) -> None:
    options = {"max_steps": 24, "save_steps": 4}
    train_sft(student, taught, config(tmp_path / "whole", **options))
    write_rows(tmp_path / "rows.jsonl", taught)
    broken = tmp_path / "broken"
    settings = {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "disable_tqdm": True, "bf16": False, **options}
    (tmp_path / "sft.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    command = ["train", "sft", "--config", str(tmp_path / "sft.yaml"), "--model", str(student)]
    command += ["--rows", str(tmp_path / "rows.jsonl"), "--output_dir", str(broken)]
    kill_when_there(command, broken / "checkpoint-4" / "trainer_state.json")
    assert not (broken / "final").exists()
    torn = broken / "checkpoint-900"
    torn.mkdir()  # as a kill in mid-save leaves it
    last = last_checkpoint(broken)
    assert last is not None and last != torn
    torn.rmdir()
    assert train_sft(student, taught, config(broken, **options)) == broken / "final"
    assert losses(broken) == losses(tmp_path / "whole")


def test_a_folder_of_another_run_is_refused(student: Path, taught: Rows, tmp_path: Path) -> None:
    train_sft(student, taught, config(tmp_path, max_steps=1))
    with pytest.raises(TrainingError, match="learning_rate was 0.003, is 0.1"):
        train_sft(student, taught, config(tmp_path, max_steps=1, learning_rate=0.1))
    with pytest.raises(TrainingError, match="rows"):
        train_sft(student, Rows(taught.rows[:9]), config(tmp_path, max_steps=1))
    (tmp_path / "stage.json").unlink()
    with pytest.raises(TrainingError, match="isn't ours"):
        train_sft(student, taught, config(tmp_path, max_steps=1))


def test_a_test_user_among_the_rows_is_refused_before_anything_is_loaded(taught: Rows, tmp_path: Path) -> None:
    user = taught.rows[0].snapshot.user_id
    with pytest.raises(TrainingError, match="held-out"):
        train_sft("nowhere", taught, config(tmp_path), heldout=[str(user)])
    with pytest.raises(TrainingError, match="held-out"):
        train_sft("nowhere", taught, config(tmp_path), eval_rows=Rows(taught.rows[:1]))


def test_time_that_runs_out_leaves_a_checkpoint_to_go_on_from(student: Path, taught: Rows, tmp_path: Path) -> None:
    assert train_sft(student, taught, config(tmp_path), minutes=0.0) is None
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert train_sft(student, taught, config(tmp_path)) == tmp_path / "final"
    assert len(logged(tmp_path, "loss")) == 3


def test_a_symptom_is_told_once() -> None:
    class State:
        global_step, is_world_process_zero = 9, True
        log_history = [{"eval_loss": 1.0}, {"eval_loss": 1.1}, {"eval_loss": 1.2}]

    guard = Guard(most_kl=1e-6)
    with pytest.warns(StarecWarning, match="SFT overfit"):
        guard.on_log(None, State(), None, logs={"kl": 0.5})
    guard.on_log(None, State(), None)
    State.global_step = 1
    with pytest.raises(TrainingError, match="reference isn't the start"):
        guard.on_log(None, State(), None, logs={"kl": 0.5})

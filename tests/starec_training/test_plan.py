"""`starec train ... --dry-run`: says what the stage then does, refuses what it would refuse, and writes nothing."""

import json
import re
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint
from support_training import drawn_user, logged, starec

from starec_training.checkpoints import count_parameters, load_policy
from starec_training.dataset import Rows, write_rows


def number(what: str, text: str) -> float:
    found = re.search(what.replace("N", r"([\d,.]+)"), text)
    assert found, f"no {what!r} in {text}"
    return float(found[1].replace(",", ""))


def test_a_teachers_dry_run_says_its_calls_and_asks_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeEndpoint(drawn_user) as server:
        command = ["teach", "--teacher", "llm", "--base-url", server.url, "--model", "fake", "--n-train", 3]
        command += ["--turns", 2, "--samples", 2, "--rethinks", 1, "--out", tmp_path / "taught"]
        assert starec(*command, "--dry-run") == 0
        said = capsys.readouterr().out
        assert server.requests == 0 and not list(tmp_path.iterdir())
        assert number("N users", said) == 3 and number("N turns", said) == 6
        assert starec(*command) == 0
        steps = (tmp_path / "taught/population/steps.jsonl").read_text().splitlines()
        own = number("about N calls", said)
        assert own == sum(len(json.loads(line)["calls"]) for line in steps) == 12
        least, most = number("adds N to", said), number("to N calls: 2 samples", said)
        assert least <= server.requests - own <= most


def test_a_dry_run_refuses_another_teachers_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["teach", "--n-train", 3, "--turns", 1, "--n-candidates", 5, "--out", tmp_path]
    assert starec(*command) == 0
    assert starec(*command, "--dry-run") == 0
    assert starec(*command, "--dry-run", "--turns", 2) == 1
    assert "its turns differ" in capsys.readouterr().err


def test_the_dry_run_of_supervised_training_says_its_steps_and_refuses_its_folder_to_others(
    tiny: Path, taught: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows" / "rows.jsonl", Rows(taught.rows[:11]))
    out = tmp_path / "sft"
    command = ["sft", "--model", tiny, "--rows", tmp_path / "rows", "--per-device-train-batch-size", 4, "--out", out]
    command += ["--num-train-epochs", 2, "--report-to", "none"]
    assert starec(*command, "--dry-run") == 0
    said = capsys.readouterr().out
    assert not out.exists()
    assert starec(*command) == 0
    assert number("steps: N of 4 rows", said) == len(logged(out, "loss")) == 6
    assert starec(*command, "--dry-run", "--learning-rate", 1) == 1
    assert "learning_rate was" in capsys.readouterr().err


def test_a_dry_run_counts_parameters_and_the_bytes_that_they_take(
    tiny: Path, taught: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, _ = load_policy(tiny)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count_parameters(tiny) == count
    write_rows(tmp_path / "rows.jsonl", taught)
    command = ["grpo", "--model", tiny, "--rows", tmp_path / "rows.jsonl", "--out", tmp_path / "rl", "--dry-run"]
    command += ["--prompts-per-step", 4, "--report-to", "none", "--max-completion-length", 10]
    assert starec(*command) == 0
    said = capsys.readouterr().out
    rows = number("grpo: N rows", said)
    assert number("at most N of 4 prompts x 8", said) == rows // 4
    assert number("N answers of at most 10 tokens", said) == rows // 4 * 32
    assert f"{20 * count / 1e9:,.2f} GB of weights, gradients and AdamW and the reference" in said
    assert starec(*command, "--lora-rank", 4, "--beta", 0) == 0
    assert f"{4 * count / 1e9:,.2f} GB of weights, and little more for the adapter" in capsys.readouterr().out
    assert not (tmp_path / "rl").exists()


def test_the_dry_run_of_rounds_counts_each_round(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["grpo", "--model", tiny, "--n-train", 6, "--turns", 3, "--answer-format", "labels", "--dry-run"]
    command += ["--rounds", 2, "--round-users", 4, "--prompts-per-step", 4, "--report-to", "none"]
    command += ["--hard", 0, 0.5, "--out", tmp_path / "rl"]
    assert starec(*command) == 0
    said = capsys.readouterr().out
    assert said.count("4 users, 12 turns, about 24 calls") == 2
    assert said.count("at most 5 of 4 prompts x 8 answers; 160 answers") == 2  # 12 rankings and 8 updates
    assert starec(*command, "--prompts-per-step", 64) == 1
    assert "some 20 prompts don't fill one batch of 64" in capsys.readouterr().err
    assert starec(*command, "--model", tmp_path / "none") == 1
    assert "can't load" in capsys.readouterr().err
    assert not (tmp_path / "rl").exists()

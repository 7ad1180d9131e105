"""The script for a lent GPU: what is packed arrives whole, and what is saved is what can't be made again."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support_training import ROOT

from starec_agents.serving import weights


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2_script", ROOT / "training" / "smollm2.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.chdir(tmp_path)
    return made


def call(script: ModuleType, *args: object) -> None:
    sys.argv = ["smollm2.py", *map(str, args)]
    script.main()


@pytest.fixture(autouse=True)
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_packed_parts_arrive_whole_or_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = bytes(range(256)) * 4 + Path(__file__).read_bytes()
    (tmp_path / "weights.gguf").write_bytes(b"GGUF" + noise)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ratings.dat").write_bytes(noise * 3)
    os.utime(tmp_path / "data" / "ratings.dat", (0, 0))  # before a zip's first year
    monkeypatch.setattr(weights, "smollm2_gguf", lambda: tmp_path / "weights.gguf")
    monkeypatch.setattr(script, "_convert", lambda: (script.MODEL / "config.json").write_text("{}"))
    files = {Path("a") / "b": tmp_path / "weights.gguf"}
    script._packed(files, tmp_path / "small", 500)
    assert len(list((tmp_path / "small").iterdir())) > 2
    assert all(path.stat().st_size <= 500 for path in (tmp_path / "small").iterdir())
    call(script, "pack", "--data", tmp_path / "data", "--out", tmp_path / "parts")
    call(script, "unpack", tmp_path / "parts")
    assert (script.MODEL / "model.gguf").read_bytes() == b"GGUF" + noise
    assert (script.DATA / "ratings.dat").read_bytes() == noise * 3
    assert (script.MODEL / "config.json").exists()
    parts = sorted((tmp_path / "small").iterdir())
    parts[0].write_bytes(parts[1].read_bytes())
    with pytest.raises(SystemExit, match="bring them again"):
        call(script, "unpack", tmp_path / "small")
    parts[0].unlink()
    with pytest.raises(SystemExit, match="bring the others"):
        call(script, "unpack", tmp_path / "small")


def test_what_is_saved_is_what_the_next_machine_needs(script: ModuleType, tmp_path: Path) -> None:
    wanted = ["table/candidates.parquet", "sft/final/adapter.bin", "sft/stage.json", "rl/round-0/rows-0.jsonl"]
    wanted += ["rl/round-0/train/checkpoint-10/optimizer.pt", "rl/round-0/train/spread.jsonl", "taught/users.json"]
    not_wanted = ["model/model.safetensors", "taught/rows.jsonl", "taught/population/steps.jsonl", "ml-1m/users.dat"]
    not_wanted += ["sft/checkpoint-50/optimizer.pt", "rl/round-0/train/checkpoint-9/optimizer.pt"]
    not_wanted += ["rl/round-0/population/steps.jsonl", "rl/round-0/train/completions/1.parquet"]
    for name in wanted + not_wanted:
        path = script.HOME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    call(script, "save", "--out", tmp_path / "saved")
    script.HOME.rename(tmp_path / "old")
    call(script, "unpack", tmp_path / "saved")
    found = {path.relative_to(script.HOME).as_posix() for path in script.HOME.rglob("*") if path.is_file()}
    assert found == set(wanted)

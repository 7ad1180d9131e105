"""SmolLM2-135M on ML-1M, from a rule-based teacher to a table, on a GPU that is lent for minutes and has no network.

Where there is a network, pack the weights, the data and the wheels that the other machine lacks, in parts of 55 MB:

    python training/smollm2.py pack --data DIR_OF_ML-1M --wheels DIR_OF_WHEELS --out parts

Over there, with this checkout: bring part after part into one folder, unpack, and call `piece` until it exits with 0:

    python training/smollm2.py unpack parts
    python training/smollm2.py piece --minutes 9       # exits with 3 while there is more to do

A piece does what fits in its time; all of its stages go on from their own records and checkpoints. Where the machine is
given back in between, `save` packs what can't be made again (adapters, the last checkpoints, the rounds' rows, ranks),
and `unpack` brings it to the next machine. The stages are the ordinary commands, with a table by the protocol at the
end: what the anchor and the trained policy are worth beside the baselines. `--scale 0.01` is the rehearsal on a CPU:
ten users, a few steps of each stage. Settings not from the paper are beginnings, and have not been tuned on a GPU.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HOME = Path("runs/smollm2")
MODEL, DATA, WHEELS = HOME / "model", HOME / "ml-1m", HOME / "wheels"
PART = 55 * 10**6
UNFINISHED = 3
MAX_HISTORY = 10
BASELINES = "random,pop,item-knn,markov,ease,ensemble"


def pack(args: argparse.Namespace) -> None:
    """The weights (98 MB as a GGUF), the data and the wheels, in parts."""
    from starec_agents.serving.weights import smollm2_gguf

    files = {Path("model") / "model.gguf": smollm2_gguf()}
    files |= {Path("ml-1m") / path.name: path for path in sorted(args.data.glob("*.dat"))}
    files |= {Path("wheels") / path.name: path for path in sorted(args.wheels.glob("*.whl"))} if args.wheels else {}
    _packed(files, args.out, args.part_mb * 10**6)


def save(args: argparse.Namespace) -> None:
    """What the next machine can't make again, in parts: not the populations, the teacher's rows or the base weights."""
    kept = [path for path in HOME.rglob("*") if path.is_file() and not path.is_relative_to(MODEL)]
    left = ("population", "rows.jsonl", "ml-1m", "wheels", "completions")
    files = {path.relative_to(HOME): path for path in kept if not set(path.relative_to(HOME).parts) & set(left)}
    newest = {path.parent: max(path.parent.glob("checkpoint-*"), key=_step) for path in HOME.rglob("checkpoint-*")}
    old = [path for path in HOME.rglob("checkpoint-*") if path != newest[path.parent]]
    done = [path for path in newest.values() if (path.parent / "final").exists()]
    files = {name: path for name, path in files.items() if not any(path.is_relative_to(gone) for gone in old + done)}
    _packed(files, args.out, args.part_mb * 10**6)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _packed(files: dict[Path, Path], out: Path, size: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, path in files.items():
            archive.write(path, name)
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    with whole.open("rb") as file:
        parts = list(iter(lambda: file.read(size), b""))
    for number, part in enumerate(parts):
        (out / f"{digest}-{number + 1:02d}-of-{len(parts):02d}").write_bytes(part)
    whole.unlink()
    print(f"{len(parts)} parts in {out}, {sum(map(len, parts)) / 1e6:.0f} MB in all")


def unpack(args: argparse.Namespace) -> None:
    """Join the parts, check them, and unfold them into runs/smollm2; wheels are installed, the GGUF converted."""
    parts = sorted(args.parts.glob("*-of-*"))
    if not parts or len(parts) != int(parts[0].name[-2:]):
        sys.exit(f"{args.parts} holds {[part.name[65:] for part in parts]}: bring the others into it first")
    whole = args.parts / "whole.zip"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    if hashlib.sha256(whole.read_bytes()).hexdigest() != parts[0].name[:64]:
        sys.exit(f"the parts in {args.parts} don't join to what was packed: bring them again")
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(HOME)
    whole.unlink()
    if wheels := sorted(map(str, WHEELS.glob("*.whl"))):
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", *wheels], check=True
        )
    if (MODEL / "model.gguf").exists() and not (MODEL / "config.json").exists():
        _convert()


def _convert() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    how = {"gguf_file": "model.gguf", "dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    AutoTokenizer.from_pretrained(MODEL, gguf_file="model.gguf").save_pretrained(MODEL)
    AutoModelForCausalLM.from_pretrained(MODEL, **how).save_pretrained(MODEL)


SFT = {"lora_rank": 16, "learning_rate": 5e-4, "max_length": 2048, "save_total_limit": 1, "report_to": "none"}
RL = {"learning_rate": 2e-5, "reward": "ndcg", "max_completion_length": 160, "save_total_limit": 1, "report_to": "none"}
ON_GPU = {
    "sft": {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 2, "save_steps": 50},
    "rl": {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 8, "save_steps": 5, "rounds": 4}
    | {"turns": 3, "hard": [0, 0.25, 0.5], "collect_batch": 256},
}
ON_CPU = {
    "sft": {"per_device_train_batch_size": 4, "num_train_epochs": 1, "max_steps": 8, "save_steps": 4},
    "rl": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "save_steps": 1, "max_steps": 2}
    | {"turns": 2, "hard": [0.25], "collect_batch": 8, "round_users": 4, "prompts": 4},
}


def piece(args: argparse.Namespace) -> None:
    """The stages in order, as far as the time goes."""
    until = time.monotonic() + 60 * args.minutes
    users, how = max(8, round(1000 * args.scale)), ON_GPU if _gpu() else ON_CPU
    table, taught, sft, rl = (HOME / name for name in ("table", "taught", "sft", "rl"))
    data = {"dataset": "ml-1m", "data_dir": DATA}
    shown = {"answer_format": "labels", "max_history": MAX_HISTORY}
    known = {"users_file": taught / "users.json"}
    if not (table / "candidates.parquet").exists():
        told = ["--dataset", "ml-1m", "--data-dir", str(DATA), "--reading", "paper", "--users", str(users)]
        _run(until, ["eval", *told, "--methods", BASELINES, "--out", str(table), "--resume", "--quiet"])
    if not (taught / "rows.jsonl").exists():
        told = {"heldout": table / "candidates.parquet", "n_train": users, "turns": 4, "min_ndcg": 0}
        _run(until, ["train", "teach", *_flags(data | shown | told | {"out": taught})])
    if not (sft / "final").exists():
        told = {"model": MODEL, "rows": taught, "out": sft}
        _run(until, ["train", "sft", *_flags(SFT | how["sft"] | known | told)], timed=True)
    last = rl / f"round-{how['rl'].get('rounds', 1) - 1}" / "train" / "final"
    if not last.exists():
        told = {"model": sft / "final", "out": rl}
        _run(until, ["train", "grpo", *_flags(RL | how["rl"] | data | shown | known | told)], timed=True)
    _run_command(until, [sys.executable, __file__, "compare", "--rl", str(last)])


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [
        text
        for name, value in options.items()
        for text in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value]))
    ]


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _left(until: float) -> float:
    if (left := until - time.monotonic()) < 10:
        sys.exit(UNFINISHED)
    return left


def _run(until: float, command: list[str], timed: bool = False) -> None:
    minutes = ["--minutes", f"{0.9 * _left(until) / 60:.2f}"] if timed else []  # the rest is for loading and saving
    _run_command(until, [sys.executable, "-m", "starec_env.cli", *command, *minutes])


def _run_command(until: float, command: list[str]) -> None:
    print(f"{time.strftime('%H:%M:%S')} {' '.join(command[2:])}", flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(command, timeout=_left(until), env={**os.environ, "HF_HUB_OFFLINE": "1"})
    except subprocess.TimeoutExpired:
        sys.exit(UNFINISHED)
    print(f"{time.strftime('%H:%M:%S')} {time.monotonic() - began:.0f} s, exit status {done.returncode}", flush=True)
    if done.returncode:
        sys.exit(done.returncode)


def compare(args: argparse.Namespace) -> None:
    """The anchor and the trained policy on the table's candidates, greedy, beside the baselines."""
    from starec_env import load_dataset
    from starec_eval.evaluate import evaluate
    from starec_eval.protocol import Protocol
    from starec_eval.rankers import build
    from starec_eval.rankers.starec import starec
    from starec_training.checkpoints import load_policy
    from starec_training.generation import LocalChat

    gpu = _gpu()
    agent = {"answer_format": "labels", "max_history": MAX_HISTORY, "warmup": 4 if gpu else 1, "max_tokens": 160}
    protocol = Protocol(load_dataset("ml-1m", DATA), "paper", candidates=HOME / "table" / "candidates.parquet")
    rankers = list(build(BASELINES.split(","), 0))
    for name, folder in (("SFT", HOME / "sft" / "final"), ("GRPO", args.rl)):
        network, tokenizer = load_policy(folder)
        network.to("cuda" if gpu else "cpu")
        chat = LocalChat(network, tokenizer, model=name, batch_size=256 if gpu else 8)
        rankers.append(starec(chat, name=name, **agent))
    results = evaluate(rankers, protocol, out=HOME / "compared", resume=True, concurrency=512 if gpu else 16)
    print(results)
    results.write(HOME / "compared")


def main() -> None:
    """One sub-command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    made = {function: commands.add_parser(function.__name__) for function in (pack, save, unpack, piece, compare)}
    for function, command in made.items():
        command.set_defaults(function=function)
    for function in (pack, save):
        made[function].add_argument("--out", type=Path, required=True)
        made[function].add_argument("--part-mb", type=int, default=PART // 10**6)
    made[pack].add_argument("--data", type=Path, required=True)
    made[pack].add_argument("--wheels", type=Path)
    made[unpack].add_argument("parts", type=Path)
    made[piece].add_argument("--minutes", type=float, default=9.0)
    made[piece].add_argument("--scale", type=float, default=1.0)
    made[compare].add_argument("--rl", type=Path, required=True)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()

"""Time generation, SFT and GRPO of one model, and our GRPO step beside bare TRL's.

    python eval/benchmarks/training.py --model smollm2 --steps 2

Our GRPO step (checked groups, recorded spread, rewards from snapshots) runs in turn with bare TRL's on the same ranking
prompts, so that both meet the same load of the machine. CPU seconds are the process's own, which a busy machine
stretches less than wall seconds.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

from starec_agents.population import run_population
from starec_env import load_dataset, prepare
from starec_training.blind import BlindTeacher
from starec_training.evidence import Evidence
from starec_training.grpo import AgentGRPO, paper_grpo
from starec_training.policy import generate
from starec_training.rewards import ranking_reward
from starec_training.rows import Rows, run_rows, to_dataset, with_turns
from starec_training.sft import lora, paper_sft, train_sft
from starec_training.stage import load_policy


def teacher_rows(args: argparse.Namespace, folder: Path) -> Rows:
    dataset = prepare(load_dataset("ml-latest-small"))
    options = {"split": "train", "turns": 2, "n_candidates": args.candidates}
    users = with_turns(dataset, [dataset.user(user).id for user in range(200)], **options)
    teacher = BlindTeacher(Evidence(dataset, users))
    agent = teacher.agent(answer_format="compact", max_history=args.history)
    run_population(dataset, agent, out=folder, users=users[: args.users], progress=False, **options)
    return run_rows(folder, dataset)


def timed_generation(args: argparse.Namespace, rows: Rows) -> dict[str, float]:
    model, tokenizer = load_policy(args.model)
    prompts = [row.prompt for row in rows.rows[: args.batch]]
    began, cpu = time.perf_counter(), time.process_time()
    answers = generate(model, tokenizer, prompts, max_tokens=args.tokens, batch_size=args.batch)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    new, read = (sum(getattr(a.usage, f"{kind}_tokens") for a in answers) for kind in ("completion", "prompt"))
    return {"prompt_tokens": read / len(answers), "new_tokens_per_cpu_s": new / cpu, "new_tokens_per_s": new / wall,
            "all_tokens_per_cpu_s": (new + read) / cpu}  # fmt: skip


def timed_sft(args: argparse.Namespace, rows: Rows, folder: Path) -> dict[str, float]:
    config = paper_sft(
        output_dir=str(folder),
        max_steps=args.steps,
        per_device_train_batch_size=4,
        save_strategy="no",
        disable_tqdm=True,
    )
    cpu = time.process_time()
    train_sft(args.model, rows, config, adapter=lora(16))
    return {"cpu_s_per_step_of_4": (time.process_time() - cpu) / args.steps}


def timed_grpo(args: argparse.Namespace, rows: Rows, folder: Path) -> dict[str, float]:
    """Seconds of each trainer's steps, one step of each in turn."""
    ranked = to_dataset([row for row in rows if row.task == "rank"]).remove_columns("completion")
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    cpu: dict[str, list[float]] = {"ours": [], "bare": []}
    trainers = {}
    for name, made in (("ours", AgentGRPO), ("bare", GRPOTrainer)):
        model, tokenizer = load_policy(args.model)
        config = paper_grpo(
            output_dir=str(folder / name), max_steps=1, gradient_accumulation_steps=1, save_strategy="no",
            max_completion_length=args.tokens, disable_tqdm=True, log_completions=False, logging_steps=10**6,
            generation_kwargs={"min_new_tokens": args.tokens}, learning_rate=0.0, beta=0.0,
        )  # fmt: skip
        rewards = [ranking_reward()] if name == "ours" else [lambda completions, **_: [0.0] * len(completions)]
        (folder / name).mkdir(parents=True)
        trainers[name] = made(
            model=model, args=config, reward_funcs=rewards, train_dataset=ranked, processing_class=tokenizer,
            peft_config=lora(16),
        )  # fmt: skip
    for _ in range(args.steps + 1):
        for name, trainer in trainers.items():
            trainer.args.max_steps = 1
            began, used = time.perf_counter(), time.process_time()
            trainer.train()
            seconds[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
    middle = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    spent = {name: statistics.median(values[1:]) for name, values in cpu.items()}
    return {"s_per_step_of_8": middle["ours"], "cpu_s_per_step_of_8": spent["ours"],
            "bare_trl_cpu_s_per_step_of_8": spent["bare"], "ours_to_bare": spent["ours"] / spent["bare"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    for name, value in (("steps", 2), ("batch", 8), ("tokens", 16), ("history", 4), ("candidates", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = teacher_rows(args, folder / "run")
        found: dict[str, Any] = {"model": args.model, "threads": args.threads, "torch": torch.__version__}
        found["generation"] = timed_generation(args, rows)
        found["sft"] = timed_sft(args, rows, folder / "sft")
        found["grpo"] = timed_grpo(args, rows, folder / "grpo")
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""Time SFT and GRPO of a model, our GRPO step beside bare TRL's, and generation, with the peak memory of each.

    python eval/benchmarks/training.py --models starec-nano smollm2 --steps 2

Each part runs in a process of its own, on rows of the rule-based teacher of ml-latest-small. Our GRPO step (checked
groups, rewards from snapshots) and bare TRL's run in turn on the same ranking prompts, so that both meet the same load
of the machine. CPU seconds are the process's own, which a busy machine stretches less than wall seconds. Tokens are
those of prompts and answers together.
"""

import argparse
import json
import operator
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from trl import GRPOTrainer

from starec_agents.runs.population import run_population
from starec_env import load_dataset, prepare
from starec_training.checkpoints import load_policy
from starec_training.dataset import Rows, run_rows, to_dataset, with_turns
from starec_training.features import Evidence
from starec_training.generation import generate
from starec_training.grpo import AgentGRPO, paper_grpo
from starec_training.rewards import ranking_reward
from starec_training.rule_teacher import RuleTeacher
from starec_training.sft import lora, paper_sft, train_sft

AT_ONCE = {"starec-nano": 8, "smollm2": 1}
"""GRPO steps that are timed at once: what a trainer does before its first step is no part of a step."""
QUIET = {"disable_tqdm": True, "report_to": "none", "logging_steps": 10**6}


def teacher_rows(args: argparse.Namespace, folder: Path) -> Rows:
    dataset = prepare(load_dataset("ml-latest-small"))
    options = {"split": "train", "turns": 2}
    users = with_turns(dataset, [dataset.user(user).id for user in range(200)], **options)
    agent = {"answer_format": "scores" if args.model == "starec-nano" else "labels", "max_history": args.history}
    teacher = RuleTeacher(Evidence(dataset, users)).agent(**agent)
    run_population(dataset, teacher, out=folder, users=users[:16], targets="liked", progress=False, **options)
    return run_rows(folder, dataset)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def timed_generation(args: argparse.Namespace, rows: Rows, folder: Path) -> dict[str, float]:
    model, tokenizer = load_policy(args.model)
    answers: list[Any] = []
    prompts = [row.prompt for row in rows][: args.batch]
    how = {"max_tokens": args.tokens, "batch_size": args.batch, "temperature": 1.0}
    wall, cpu = timed(lambda: answers.extend(generate(model, tokenizer, prompts, **how)))
    new = sum(answer.usage.completion_tokens for answer in answers)
    read = sum(answer.usage.prompt_tokens for answer in answers)
    return {"tokens": read + new, "new_tokens_per_s": new / wall, "wall_s": wall, "cpu_s": cpu}


class StepEnds(TrainerCallback):  # type: ignore[misc]
    """When each step ended, on the wall's clock and on the process's."""

    seen: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.seen.append((time.perf_counter(), time.process_time()))


def timed_sft(args: argparse.Namespace, rows: Rows, folder: Path) -> dict[str, float]:
    """A step lasts from the one's end before to its own: loading, the first step and saving fall out."""
    _, tokenizer = load_policy(args.model)
    rows = Rows([max(rows, key=lambda row: len(str(row.prompt) + row.completion))] * 4 * (args.steps + 1))
    text = [*rows.rows[0].prompt, {"role": "assistant", "content": rows.rows[0].completion}]
    tokens = 4 * len(tokenizer.apply_chat_template([dict(message) for message in text], return_dict=False))
    DEFAULT_CALLBACKS.append(StepEnds)
    settings = {"max_steps": args.steps + 1, "per_device_train_batch_size": 4, "save_strategy": "no", **QUIET}
    train_sft(args.model, rows, paper_sft(output_dir=str(folder), **settings), adapter=lora(16))
    wall, cpu = (statistics.median(map(operator.sub, ends[1:], ends)) for ends in zip(*StepEnds.seen, strict=True))
    return {"tokens": tokens, "wall_s": wall, "cpu_s": cpu}


def grpo_trainer(made: type[GRPOTrainer], args: argparse.Namespace, rows: Rows, folder: Path) -> GRPOTrainer:
    model, tokenizer = load_policy(args.model)
    config = paper_grpo(
        output_dir=str(folder), max_steps=AT_ONCE[args.model], gradient_accumulation_steps=1, save_strategy="no",
        max_completion_length=args.tokens, log_completions=False, learning_rate=0.0, beta=args.beta,
        generation_kwargs={"min_new_tokens": args.tokens}, **QUIET,
    )  # fmt: skip
    folder.mkdir(parents=True)
    ours = made is AgentGRPO
    return made(
        model=model, args=config, processing_class=tokenizer, peft_config=lora(16),
        reward_funcs=[ranking_reward() if ours else _with_spread],
        train_dataset=to_dataset([row for row in rows if row.task == "rank"]).remove_columns("completion"),
    )  # fmt: skip


def _with_spread(completions: list[Any], **_: Any) -> list[float]:
    # As cheap as can be; without spread there would be no gradient.
    return [float(place % 2) for place in range(len(completions))]


def timed_grpo(args: argparse.Namespace, rows: Rows, folder: Path, *beside: type[GRPOTrainer]) -> dict[str, float]:
    trainers = [grpo_trainer(made, args, rows, folder / made.__name__) for made in (AgentGRPO, *beside)]
    took = []
    for turn in range(args.steps + 1):
        order = trainers[:: 1 - turn % 2 * 2]  # each goes first every other time
        times = {id(trainer): timed(trainer.train) for trainer in order}
        took.append([times[id(trainer)] for trainer in trainers])
    took = took[1:]  # the first is warmer for the second
    found: dict[str, float] = {"tokens": trainers[0].state.num_input_tokens_seen / AT_ONCE[args.model]}
    for place, kind in enumerate(("wall", "cpu")):
        seconds = [[one[place] for one in step] for step in took]
        found[f"{kind}_s"] = statistics.median(step[0] for step in seconds) / AT_ONCE[args.model]
        if beside:
            found[f"ours_to_bare_{kind}"] = statistics.median(step[0] / step[1] for step in seconds)
    return found


def timed_beside(args: argparse.Namespace, rows: Rows, folder: Path) -> dict[str, float]:
    return timed_grpo(args, rows, folder, GRPOTrainer)


PARTS = {"generation": timed_generation, "sft": timed_sft, "grpo": timed_grpo, "beside bare TRL": timed_beside}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=AT_ONCE, default=list(AT_ONCE))
    for name, value in (("steps", 2), ("batch", 8), ("tokens", 16), ("history", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--beta", type=float, default=1e-3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        torch.set_num_threads(args.threads)
        with tempfile.TemporaryDirectory() as scratch:
            rows = teacher_rows(args, Path(scratch) / "run")
            found = PARTS[args.parts[0]](args, rows, Path(scratch) / "out")
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        for kind, name in (("wall", "tokens_per_s"), ("cpu", "tokens_per_cpu_s")):
            found[name] = found["tokens"] / found[f"{kind}_s"]
        print(json.dumps(found))
        return
    given = [f"--{name}={getattr(args, name)}" for name in ("steps", "batch", "tokens", "history", "threads", "beta")]
    for model in args.models:
        for part in args.parts:
            command = [sys.executable, __file__, "--model", model, "--parts", part, *given]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{model}, {part}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            print(model, part, json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()

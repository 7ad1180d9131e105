"""What reinforcement adds to imitation, on a model that two CPU cores can train: SFT, then GRPO or more SFT.

    python examples/nano/miniature.py --out runs/miniature --seed 0      # one process a seed, in one folder
    python examples/nano/miniature.py --out runs/miniature --seed 1
    python examples/nano/miniature.py --out runs/miniature --table       # once the seeds are done

The stages are those of the big recipes: `train_sft`, `train_grpo`, and `evaluate` on a candidates file. What is small
is the model (2.4 million weights, initialised by hand) and the data (ml-latest-small). A stopped run goes on when
called again. `make miniature` runs both seeds side by side, and prints their table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from loss import ScoresTrainer
from rows import MAX_HISTORY, Prompts, answer_of, split_able_users
from start import new_model, save, tokens_for

from starec_env import load_dataset, prepare
from starec_env.cases import Cases
from starec_env.data.spec import DataSpec
from starec_env.metrics import interval, ndcg, of_means, per_user
from starec_env.replay.stream import Stream
from starec_env.types import Dataset
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol
from starec_eval.rankers.starec import starec
from starec_training.checkpoints import load_policy
from starec_training.dataset import Row, Rows
from starec_training.features import FEATURES, Evidence
from starec_training.generation import LocalChat
from starec_training.grouped import head_on_answers, scores_only
from starec_training.grpo import paper_grpo, train_grpo
from starec_training.sft import paper_sft, train_sft

LISTS = (5, 10, 20)
"""Lengths of lists that SFT sees, in turn: so that a gain of GRPO on one of them is none of adaptation."""
CONTENT = FEATURES[2:]
"""What the teacher sees: popularity, genres and years, what a reader of the catalogue could know."""
TESTED = {"turns": 5, "lists": 4}
"""Last liked turns of each test user, and candidate lists of each."""


@dataclass(frozen=True)
class Plan:
    """How long each stage trains, in optimizer steps; more SFT takes as many as fill GRPO's CPU time."""

    sft: int = 500
    grpo: int = 42
    users: int = 150
    """Test users; there are 150."""
    size: str = "medium"
    sft_batch: int = 16
    prompts: int = 64
    """Of a step of GRPO."""
    group: int = 16
    together: int = 8
    """Prompts whose groups are generated and trained at a time."""
    candidates: int = 5
    """Of GRPO's lists."""


class Data:
    """The data set, who trains and who is tested, and the teacher."""

    def __init__(self, loaded: Dataset | None = None, teacher_sees: Sequence[str] = CONTENT) -> None:
        self.loaded, self.sees = loaded or load_dataset("ml-latest-small"), teacher_sees
        self.windows = DataSpec().load() if loaded is None else prepare(loaded)  # which names itself on a card
        self.streams = prepare(self.loaded, max_length=None)
        self.split = split_able_users(self.windows)

    @cached_property
    def teacher(self) -> Evidence:
        """Counts of the training users' streams; ranks by what it sees."""
        return Evidence(self.streams, self.split.train).only(self.sees)

    def prompts(self, seed: int) -> Prompts:
        """Draws rows of training users; another seed draws others."""
        return Prompts(self.streams, self.teacher, self.split.train, seed)


def mixed(
    prompts: Prompts,
    steps: int,
    batch: int,
    popular_first: float = 0.0,
    reflecting: float = 0.0,
    lists: Sequence[int] = LISTS,
) -> Rows:
    """Rows for so many steps, each of lists of one length, in the order in which they are learned.

    Args:
        prompts: Draws them.
        steps: How many batches.
        batch: Rows of each.
        popular_first: In this share of the steps the teacher goes over from popularity to what it sees itself.
        reflecting: Share of memory updates.
        lists: Candidates of each step's rankings, in turn.
    """
    rows: list[Row] = []
    for step in range(steps):
        popular = max(0.0, 1 - step / max(1.0, popular_first * steps))
        length = lists[step % len(lists)]
        rows += prompts.draw(batch, candidates=length, popularity=popular, reflecting=reflecting)
    return Rows(rows)


def sft_config(out: Path, steps: int, batch: int, learning_rate: float = 1.5e-3, seed: int = 0) -> Any:
    """Of every SFT stage."""
    return paper_sft(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, steps),
        adam_beta2=0.98,
        weight_decay=0.02,
        train_sampling_strategy="sequential",
        save_steps=100,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        logging_steps=20,
    )


def grpo_config(out: Path, plan: Plan, seed: int) -> Any:
    """Equation 3 without its KL term, on short lists, with a rate that falls to 0."""
    return paper_grpo(
        output_dir=str(out),
        num_generations=plan.group,
        per_device_train_batch_size=plan.group * plan.together,
        gradient_accumulation_steps=plan.prompts // plan.together,
        steps_per_generation=1,
        max_completion_length=4 * plan.candidates + 8,
        max_steps=plan.grpo,
        learning_rate=4e-4,
        lr_scheduler_type="linear",
        warmup_steps=min(5, plan.grpo),
        beta=0.0,
        save_steps=10,
        seed=seed,
        log_completions=False,
        report_to="none",
        disable_tqdm=True,
    )


def begin(folder: Path, data: Data, prompts: Prompts, size: str, seed: int) -> None:
    """Write the untrained model and its tokenizer."""
    shown = [row for n in LISTS for row in prompts.draw(300, candidates=n, reflecting=0.3)]
    tokenizer = tokens_for(data.teacher, shown)
    save(new_model(data.teacher, tokenizer, size=size, seed=seed), tokenizer, folder)


def train(out: Path, seed: int, plan: Plan, data: Data, minutes: float | None = None) -> bool:
    """Go on with a seed's stages; returns whether all are done."""
    torch.set_num_threads(1)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    _claim(out, seed, plan)
    if not (out / "start").exists():
        begin(out / "start", data, data.prompts(seed), plan.size, seed)
    sft = _taught(out / "sft", out / "start", 10 * seed, plan, plan.sft, 0.12, data, until)
    grpo = sft and _reinforced(out / "grpo", sft, 10 * seed + 1, plan, data, until)
    more = grpo and _taught(out / "more", sft, 10 * seed + 2, plan, _as_long(out, plan), 0.0, data, until)
    return more is not None


def _as_long(out: Path, plan: Plan) -> int:
    # Steps of SFT that take as many CPU seconds as GRPO did.
    sft, grpo = (
        sum(json.loads(line)["cpu"] for line in (out / stage / "seconds.jsonl").read_text().splitlines())
        for stage in ("sft", "grpo")
    )
    return max(1, round(plan.sft * grpo / sft))


def _taught(
    out: Path, model: Path, seed: int, plan: Plan, steps: int, popular: float, data: Data, until: float | None
) -> Path | None:
    if (out / "final").exists():
        return out / "final"
    rows = mixed(data.prompts(seed), steps, plan.sft_batch, popular)
    config = sft_config(out, steps, plan.sft_batch, seed=seed)
    options: dict[str, Any] = {"heldout": [*data.split.test, *data.split.validation], "minutes": _left(until)}
    return _timed(out, lambda: train_sft(model, rows, config, trainer_class=ScoresTrainer, **options))


def _reinforced(out: Path, model: Path, seed: int, plan: Plan, data: Data, until: float | None) -> Path | None:
    if (out / "final").exists():
        return out / "final"
    head_on_answers()
    rows = Rows(list(data.prompts(seed).draw(plan.grpo * plan.prompts, candidates=plan.candidates)))
    rollout = scores_only(answer_of(np.zeros(plan.candidates)))
    options: dict[str, Any] = {"heldout": [*data.split.test, *data.split.validation], "minutes": _left(until)}
    options |= {"reward": "ndcg", "rollout": rollout, "frozen": ["embed_tokens"]}
    return _timed(out, lambda: train_grpo(model, rows, grpo_config(out, plan, seed), **options))


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, (until - time.monotonic()) / 60)


def _timed(out: Path, stage: Callable[[], Path | None]) -> Path | None:
    # CPU seconds of the training itself, added up over pieces.
    begun, wall = time.process_time(), time.time()
    final: Path | None = None
    try:
        final = stage()
    finally:
        _note(out, begun, wall, final is not None)
    return final


def _note(out: Path, begun: float, wall: float, done: bool) -> None:
    out.mkdir(exist_ok=True)
    with open(out / "seconds.jsonl", "a", encoding="utf-8") as file:
        piece = {"cpu": round(time.process_time() - begun, 1), "wall": round(time.time() - wall, 1)}
        file.write(json.dumps(piece | {"load": os.getloadavg(), "done": done}) + "\n")


def _claim(out: Path, seed: int, plan: Plan) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path, wanted = out / "plan.json", json.loads(json.dumps({"seed": seed, **vars(plan), **TESTED}))
    if path.exists() and (found := json.loads(path.read_text())) != wanted:
        raise SystemExit(f"{out} holds a run of {found}, not {wanted}: give another --out")
    path.write_text(json.dumps(wanted) + "\n")


def test_cases(data: Data, users: int = 150, part: str = "test", n_candidates: int = 20) -> Cases:
    """The last turns of held-out users, several candidate lists each."""
    windows, found = data.windows, []
    ids = [windows.user_index(user) for user in getattr(data.split, part)][:users]
    for repetition in range(TESTED["lists"]):
        stream = Stream(windows, seed=1000 + repetition, turns=TESTED["turns"], n_candidates=n_candidates)
        for user in ids:
            for turn in stream.turns(user)[-TESTED["turns"] :]:
                history = turn.query.history
                first = int(windows.starts[user])
                rows = first, first + len(history)
                found.append((repetition, user, turn.number, *rows, turn.target, turn.query.candidates.indices))
    *columns, candidates = zip(*found, strict=True)
    arrays = [np.array(column) for column in columns]
    return Cases(windows, *arrays, np.stack(candidates), np.ones(len(found), bool))


def judge(out: Path, plan: Plan, data: Data) -> None:
    """Rank the test users' lists greedily by each stage's model; ranks are kept as they come."""
    path = out / "cases.parquet"
    if not path.exists():
        test_cases(data, plan.users).write(path)
    protocol = Protocol(data.loaded, candidates=path)
    for name in ("sft", "grpo", "more"):
        network, tokenizer = load_policy(out / name / "final")
        chat = LocalChat(network, tokenizer, model=name, batch_size=128)
        agent = {"answer_format": "scores", "max_history": MAX_HISTORY, "max_tokens": 80}
        ranker = starec(chat, "rank-only", name=name, **agent)
        results = evaluate([ranker], protocol, out=out / "judged", resume=True, concurrency=256)
        np.save(out / f"ranks-{name}.npy", results.methods[0].ranks)


STAGES = {"sft": "SFT", "grpo": "SFT, then GRPO", "more": "SFT, then more SFT"}


def table(folder: Path) -> str:
    """Means over seeds and users, errors over users, and 95 % intervals of paired differences over both."""
    seeds = sorted(path.parent for path in folder.glob("seed-*/ranks-more.npy"))
    if not seeds:
        raise SystemExit(f"{folder} holds no seed that is done: give --out and --seed, and let it end")
    values = {name: np.array([_by_user(seed, name) for seed in seeds]) for name in STAGES}
    lines = [f"{len(seeds)} seeds, {values['sft'].shape[1]} test users; NDCG@10 in percent, 95 % over both", ""]
    lines += ["| | NDCG@10 | ranked | minus SFT | minus more SFT |", "|---|---|---|---|---|"]
    for name, shown in STAGES.items():
        mean = of_means("", values[name].mean(0))
        ranked = np.mean([np.isfinite(np.load(seed / f"ranks-{name}.npy")).mean() for seed in seeds])
        gaps = [_gap(values[name], values[other]) if name != other else "" for other in ("sft", "more")]
        lines.append(f"| {shown} | {mean.mean:.1f} ± {mean.se:.1f} | {ranked:.1%} | {' | '.join(gaps)} |")
    return "\n".join(lines) + "\n"


def _by_user(seed: Path, name: str) -> Any:
    users = pq.read_table(seed / "cases.parquet")["user_id"].to_numpy()
    return 100 * per_user(ndcg(np.load(seed / f"ranks-{name}.npy"), 10), users)


def _gap(ours: Any, others: Any) -> str:
    gap = ours - others
    low, high = interval(gap)
    by_seed = ", ".join(f"{each:+.1f}" for each in gap.mean(1))
    return f"{gap.mean():+.1f} ({low:+.1f} to {high:+.1f}; by seed {by_seed})"


def main() -> None:
    """Train and judge a seed, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop training with a checkpoint after so long")
    parser.add_argument("--table", action="store_true", help="print the table of the seeds that are done")
    for name, value in vars(Plan()).items():
        if isinstance(value, int):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    args = parser.parse_args()
    if args.table:
        return print(table(args.out))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the seconds are noted
    plan = Plan(**{name: getattr(args, name) for name, value in vars(Plan()).items() if isinstance(value, int)})
    data, out = Data(), args.out / f"seed-{args.seed}"
    if train(out, args.seed, plan, data, args.minutes):
        judge(out, plan, data)


if __name__ == "__main__":
    main()

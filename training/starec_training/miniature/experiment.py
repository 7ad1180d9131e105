"""The miniature experiment: the paper's questions, asked of a model that two cores train from nothing.

A seed's jobs follow one another in a process of their own: SFT from the blind teacher, then from that same model each
of `ARMS` for the same CPU time. Everything is judged on validation or test users by their held-out turn.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from starec_agents.parsing import parse_ranking
from starec_env import load_dataset, prepare
from starec_env.types import Dataset
from starec_training.evidence import Evidence
from starec_training.miniature.data import N_CANDIDATES, Encoder, Prompts, Split, split_users, tokens_for
from starec_training.miniature.heldout import Case, asked, by_user, cases, interval, remembering, told
from starec_training.miniature.model import answer, new_model, save
from starec_training.miniature.train import Settings, judged, ranks_of, train
from starec_training.policy import generate

Users = Literal["validation", "test"]

ARMS: dict[str, Settings] = {
    "more SFT": Settings("sft", learning_rate=7e-4, popular_first=0),
    "true item": Settings("true item", learning_rate=7e-4),
    "GRPO": Settings("grpo", learning_rate=7e-4),
    "GRPO, no KL": Settings("grpo", learning_rate=7e-4, beta=0.0),
    "Reinforce++": Settings("reinforce++", learning_rate=7e-4),
}
"""What follows SFT, each for the same CPU time, from the same weights."""

_UNITS_SFT, _BEST_OF, _FREE = 4.0, 8, 40


@dataclass(frozen=True)
class Ground:
    """What all jobs stand on."""

    windows: Dataset
    streams: Dataset
    split: Split
    evidence: Evidence


def ground(dataset: str, data_dir: str | None = None) -> Ground:
    """Load a data set, split its users, and count what its training users did."""
    loaded = load_dataset(dataset, data_dir)
    windows, streams = prepare(loaded), prepare(loaded, max_length=None)
    split = split_users(windows)
    return Ground(windows, streams, split, Evidence(streams, split.train))


def run(
    out: str | Path,
    *,
    dataset: str = "ml-latest-small",
    data_dir: str | None = None,
    minutes: float = 60.0,
    seeds: int = 3,
    users: Users = "test",
    processes: int = 2,
) -> str:
    """Run what isn't there yet and return the table; finished jobs in `out` are kept.

    Args:
        out: Folder of results; one JSON file a job.
        dataset: Data set's name.
        data_dir: Its folder, if it isn't bundled.
        minutes: For everything, on as many free cores as `processes`.
        seeds: How often the whole is repeated.
        users: Whom to judge by. Recipes are chosen on "validation".
        processes: Jobs at a time, one thread each.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    if not (out / "ground.pkl").exists():
        (out / "ground.pkl").write_bytes(pickle.dumps(ground(dataset, data_dir)))
    jobs = [(seed, "medium", True) for seed in range(seeds)] + [(0, "small", False), (0, "large", False)]
    units = sum(_UNITS_SFT + (len(ARMS) + 1) * arms for _, _, arms in jobs)
    left = minutes * 60 - (time.perf_counter() - begun)
    unit = 0.8 * left * processes / units  # the rest of the time goes to judging
    todo = [job for job in jobs if not _file(out, *job[:2]).exists()]
    with ProcessPoolExecutor(min(processes, max(1, len(todo))), get_context("spawn")) as pool:
        for done in [pool.submit(_job, out, users, unit, *job) for job in todo]:
            done.result()
    text = table([json.loads(_file(out, *job[:2]).read_text()) for job in jobs], unit, users)
    (out / "table.md").write_text(text)
    return text


def _file(out: Path, seed: int, size: str) -> Path:
    return out / f"{size}-{seed}.json"


def _job(out: Path, users: Users, unit: float, seed: int, size: str, arms: bool) -> None:
    import torch

    torch.set_num_threads(1)
    base: Ground = pickle.loads((out / "ground.pkl").read_bytes())
    found = cases(base.windows, getattr(base.split, users))
    prompts = Prompts(base.streams, base.evidence, base.split.train, seed)
    encoder = Encoder(tokens_for(prompts), base.streams)
    shown = encoder.encode([asked(case) for case in found])
    model = new_model(base.evidence, encoder, shown[0], size, seed)
    result: dict[str, Any] = {"seed": seed, "size": size, "weights": sum(w.numel() for w in model.parameters())}
    rows: dict[str, list[float]] = {}

    def judge_arm(name: str, trained: Any) -> None:
        rows[name] = by_user(judged(trained, encoder, shown), found).tolist()

    if size == "medium" and seed == 0:
        counts, scores = base.evidence.counts, [base.evidence.rank(case.turn.query) for case in found]
        popular = np.stack([counts[case.turn.query.candidates.indices] for case in found])
        target = torch.tensor([case.turn.target for case in found])
        rows["popularity"] = by_user(ranks_of(torch.tensor(popular), target).numpy(), found).tolist()
        ranks = [ranking.rank_of(case.turn.target) for ranking, case in zip(scores, found, strict=True)]
        rows["the blind teacher itself"] = by_user(np.array(ranks), found).tolist()
    if arms:
        direct = replace(ARMS["GRPO"], seconds=unit, seed=seed, beta=0.0, log=[])
        judge_arm("no training", model)
        judge_arm("GRPO without SFT", train(deepcopy(model), encoder, prompts, direct))
    train(model, encoder, prompts, Settings(seconds=_UNITS_SFT * unit, learning_rate=1.5e-3, batch=8, seed=seed))
    judge_arm("SFT" if arms else f"SFT, {size}", model)
    if arms:
        save(model, encoder.tokenizer, out / f"sft-{seed}")
        result |= _written(model, encoder, found, rows)
        rows[f"SFT, best of {_BEST_OF} (told which)"] = _best(model, encoder, found)
        for name, settings in ARMS.items():
            own = replace(settings, seconds=unit, seed=seed, log=[])
            trained = train(deepcopy(model), encoder, prompts, own, anchor=model)
            judge_arm(name, trained)
            result[name] = {key: value for key, value in own.log[-1].items() if key.startswith("log ")}
            result[name]["steps"] = len(own.log)
    _file(out, seed, size).write_text(json.dumps(result | {"rows": rows}))


def _written(model: Any, encoder: Encoder, found: Sequence[Case], rows: dict[str, list[float]]) -> dict[str, float]:
    """Free answers, and whether the memory that the model itself wrote helps it."""
    import torch

    usable = [case for case in found if case.before is not None]
    earlier = [asked(replace(case, turn=case.before)) for case in usable if case.before]
    with torch.no_grad():
        said = [
            answer(model, encoder, [example], np.random.default_rng(0)).scores[0].argmax(-1).tolist()
            for example in encoder.encode(earlier)
        ]
    orders = [sorted(range(N_CANDIDATES), key=lambda place: -scores[place]) for scores in said]  # noqa: B023
    memories = remembering(model, encoder, usable, orders)
    reflected = encoder.encode([asked(case, memory) for case, memory in zip(usable, memories, strict=True)])
    plain = encoder.encode([asked(case) for case in usable])
    rows["SFT, with its own memory text"] = by_user(judged(model, encoder, reflected), usable).tolist()
    rows["SFT, without self-reflection"] = by_user(judged(model, encoder, plain), usable).tolist()
    free = generate(model, encoder.tokenizer, [example.messages for example in plain[:_FREE]], max_tokens=100)
    pairs = zip(free, usable, strict=False)
    valid = [parse_ranking(text.text, case.turn.query.candidates, "compact").valid for text, case in pairs]
    return {"valid answers, free": float(np.mean(valid))}


def _best(model: Any, encoder: Encoder, found: Sequence[Case]) -> list[float]:
    import torch

    ranks = []
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for case in found:
            logits = answer(model, encoder, encoder.encode([asked(case)]), rng).scores
            drawn = torch.distributions.Categorical(logits=logits.expand(_BEST_OF, -1, -1)).sample()
            ranks.append(int(ranks_of(drawn, torch.full((_BEST_OF,), case.turn.target)).min()))
    means: list[float] = by_user(np.array(ranks), found).tolist()
    return means


def table(results: Sequence[dict[str, Any]], unit: float, users: str) -> str:
    """The results as Markdown: means over seeds and users, errors over users, paired intervals."""
    names = list(dict.fromkeys(name for result in results for name in result["rows"]))
    means = {
        name: np.mean([result["rows"][name] for result in results if name in result["rows"]], axis=0) for name in names
    }
    lines = [
        f"NDCG@10 in percent on {len(means['SFT'])} {users} users; errors and 95 % intervals over users, seeds "
        f"averaged first. SFT {_UNITS_SFT * unit:.0f} CPU s, what follows {unit:.0f} each.",
        "",
        "| | seeds | NDCG@10 | minus SFT | minus more SFT |",
        "|---|---|---|---|---|",
    ]
    for name, values in means.items():
        gaps = []
        for other in ("SFT", "more SFT"):
            if name == other or other not in means or len(values) != len(means[other]):
                gaps.append("")
                continue
            gap = values - means[other]
            low, high = interval(gap)
            gaps.append(f"{gap.mean():+.1f} ({low:+.1f} to {high:+.1f})")
        seeds = sum(name in result["rows"] for result in results)
        lines.append(f"| {name} | {seeds} | {told(values)} | {' | '.join(gaps)} |")
    sizes = ", ".join(f"{result['size']} {result['weights']:,}" for result in results if result["seed"] == 0)
    valid = np.mean([result["valid answers, free"] for result in results if "valid answers, free" in result])
    health = [f"{name} {result[name]}" for result in results[:1] for name in ARMS if name in result]
    lines += ["", f"Weights: {sizes}. Free answers valid: {100 * valid:.0f} %. Last step, seed 0: {'; '.join(health)}."]
    return "\n".join(lines) + "\n"

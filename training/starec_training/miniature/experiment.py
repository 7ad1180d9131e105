"""The miniature experiment: the paper's questions, asked of a model that two cores train from nothing.

First each seed's and size's SFT from the blind teacher; then, from those very weights, each of `ARMS` for the same CPU
time. All is judged on validation or test users by their held-out turn.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starec_agents.parsing import parse_ranking
from starec_env import load_dataset, prepare
from starec_env.errors import TrainingError
from starec_env.types import Dataset
from starec_training.evidence import Evidence
from starec_training.miniature.data import Descriptions, Encoder, Example, Prompts, Split, split_users, tokens_for
from starec_training.miniature.decode import decode
from starec_training.miniature.heldout import Case, Keeps, asked, by_user, cases, interval, remembering, told
from starec_training.miniature.model import answer, load, new_model, save
from starec_training.miniature.train import Settings, judged, ranks_of, train

Users = Literal["validation", "test"]
Rows = dict[str, list[int]]
# Ranks of the true item, by the name of what ranked.

SFT, DIRECT, BOTH = "SFT", "GRPO without SFT", "GRPO, memory texts too"
ARMS: dict[str, Settings] = {
    "GRPO": Settings("grpo", learning_rate=7e-4),
    "more SFT": Settings("sft", learning_rate=7e-4, popular_first=0),
    "true item": Settings("true item", learning_rate=7e-4),
    BOTH: Settings("grpo", learning_rate=7e-4, texts=8, reflecting=0.25),
    "Reinforce++": Settings("reinforce++", learning_rate=7e-4),
    "GRPO, no KL": Settings("grpo", learning_rate=7e-4, beta=0.0),
    DIRECT: Settings("grpo", learning_rate=7e-4, beta=0.0),
}
"""What follows SFT, each for the same CPU time, from the same weights; but `DIRECT` from the untrained model."""
OTHER_SIZES = ("small", "large")

_UNITS_SFT, _BEST_OF, _DECODED = 4.0, 8, 150
_MEMORIES: dict[str, Keeps] = {
    "its own memory text": "text",
    "events alone, no text": "events",
    "the teacher's text": "the teacher's text",
}


class Job(NamedTuple):
    """One training, from its start to its ranks."""

    seed: int
    size: str
    arm: str = SFT

    def file(self, out: Path) -> Path:
        """Where its result stands."""
        return out / f"{self.size}-{self.seed}-{self.arm}.json"


@dataclass(frozen=True)
class Ground:
    """What all jobs stand on."""

    windows: Dataset
    streams: Dataset
    split: Split
    evidence: Evidence


def ground(dataset: str, data_dir: str | None = None) -> Ground:
    """Load a data set, split its users, and count what its training users did (20 CPU seconds)."""
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

    Raises:
        TrainingError: The folder holds a run of other settings.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    others = [Job(0, size) for size in OTHER_SIZES]
    arms = [Job(seed, "medium", arm) for arm in ARMS for seed in range(seeds)]
    stages = [Job(seed, "medium") for seed in range(seeds)], [*others, *arms], [Job(*job[:2], "GRPO") for job in others]
    jobs = [job for stage in stages for job in stage]
    units = sum(_UNITS_SFT if job.arm == SFT else 1.0 for job in jobs)
    unit = 0.8 * minutes * 60 * processes / units  # the rest is for judging
    wanted = {"dataset": dataset, "users": users, "unit": round(unit, 1), "seeds": seeds}
    _claim(out / "settings.json", wanted)
    for stage in stages:
        todo = [job for job in stage if not job.file(out).exists()]
        options: Any = {"initializer": _begin, "initargs": (dataset, data_dir)}
        with ProcessPoolExecutor(min(processes, max(1, len(todo))), get_context("spawn"), **options) as pool:
            for done in [pool.submit(_job, job, out, users, unit) for job in todo]:
                done.result()
    text = table([json.loads(job.file(out).read_text()) for job in jobs], unit, users)
    (out / "table.md").write_text(text)
    return text


def _claim(path: Path, wanted: dict[str, Any]) -> None:
    if path.exists() and (there := json.loads(path.read_text())) != wanted:
        raise TrainingError(f"{path.parent} holds a run with {there}, not {wanted}: give another --out")
    path.write_text(json.dumps(wanted))


_ground: Ground | None = None


def _begin(dataset: str, data_dir: str | None) -> None:
    # In each process of the pool, once.
    import torch

    global _ground
    torch.set_num_threads(1)
    _ground = ground(dataset, data_dir)


def _job(job: Job, out: Path, users: Users, unit: float) -> None:
    base = _ground
    assert base is not None
    found = cases(base.windows, getattr(base.split, users))
    stage = [SFT, *ARMS].index(job.arm) and 1  # all arms draw the same prompts, and others than SFT drew
    prompts = Prompts(base.streams, base.evidence, base.split.train, 2 * job.seed + stage)
    start = out / f"{job.size}-{job.seed}"
    if job.arm == SFT:
        encoder = Encoder(tokens_for(prompts), base.streams)
    else:
        trained, tokenizer = load(start)
        encoder = Encoder(tokenizer, base.streams)
    shown = encoder.encode([asked(case.turn) for case in found])
    rows: Rows = {}
    if job.arm in (SFT, DIRECT):
        model, anchor = new_model(base.evidence, encoder, shown[0], job.size, job.seed), None
    else:
        model, anchor = trained, load(start)[0].eval()
    if job.arm == DIRECT:
        rows["no training"] = judged(model.eval(), encoder, shown).tolist()
    if job == Job(0, "medium"):
        rows |= _known(base, found)
    sft = Settings(seconds=_UNITS_SFT * unit, learning_rate=1.5e-3, batch=8)
    settings = sft if job.arm == SFT else replace(ARMS[job.arm], seconds=unit)
    settings = replace(settings, seed=job.seed, log=[])
    began = time.process_time()
    train(model, encoder, prompts, settings, anchor=anchor)
    seconds = time.process_time() - began
    if job.arm == SFT:
        save(model, encoder.tokenizer, start)
        model = load(start)[0].eval()  # what arms begin with: float16's values
    name = job.arm if job.size == "medium" else f"{job.arm}, {job.size}"
    rows[name] = judged(model, encoder, shown).tolist()
    result: dict[str, Any] = job._asdict() | {"weights": sum(weight.numel() for weight in model.parameters())}
    result |= {"name": name, "seconds": seconds, "steps": len(settings.log), "log": _late(settings.log)}
    if job.size == "medium":
        result |= _decoded(model, encoder, found[:_DECODED], shown[:_DECODED])
        if job.arm == SFT:
            rows |= _best(model, encoder, shown)
        if job.arm in (SFT, "GRPO", BOTH):
            for what, keeps in _MEMORIES.items():
                memories = remembering(model, encoder, found, keeps, Descriptions(base.evidence))
                recalled = [asked(case.turn, memory) for case, memory in zip(found, memories, strict=True)]
                rows[f"{name}: {what}"] = judged(model, encoder, encoder.encode(recalled)).tolist()
    result["rows"] = rows
    result["users"] = [str(case.user) for case in found]
    part = job.file(out).with_suffix(".part")
    part.write_text(json.dumps(result))
    os.replace(part, job.file(out))


def _late(log: Sequence[dict[str, float]]) -> dict[str, float]:
    # Means of a training's last tenth.
    late = log[-max(1, len(log) // 10) :]
    return {
        name.removeprefix("log "): float(np.mean([step[name] for step in late])) for name in late[0] if name != "step"
    }


def _known(base: Ground, found: Sequence[Case]) -> Rows:
    """What needs no language model, on the same candidates, from the training users alone."""
    import torch

    evidence, targets = base.evidence, torch.tensor([case.turn.target for case in found])
    features = np.concatenate([evidence.features(evidence.batch([case.turn.query])) for case in found])
    scores = {
        "random": np.random.default_rng(0).random(features.shape[:2]),
        "popularity": features[..., 2],
        "item-kNN, recent first": features[..., 0],
        "the blind teacher itself": features / evidence.scale @ evidence.weights,
    }
    return {name: ranks_of(torch.tensor(each), targets).tolist() for name, each in scores.items()}


def _decoded(model: Any, encoder: Encoder, found: Sequence[Case], shown: Sequence[Example]) -> dict[str, float]:
    """Answers written token by token: free ones, and ones held to the format."""
    prompts = [example.ids[: example.begin] for example in shown]
    scores = set(encoder.score_at.tolist())
    owners = [case.user for case in found]
    result = {"one pass, NDCG@10": float(by_user(judged(model, encoder, shown), owners).mean())}

    def form(at: int) -> NDArray[np.integer[Any]]:
        return encoder.score_ids if at in scores else encoder.skeleton[at : at + 1]

    for name, allowed, most in (("free", None, len(encoder.skeleton) + 20), ("held", form, len(encoder.skeleton))):
        answers = decode(model, prompts, encoder.end, most=most, allowed=allowed)
        texts = encoder.tokenizer.batch_decode([ids for (ids,) in answers], skip_special_tokens=True)
        read = [
            parse_ranking(text, case.turn.query.candidates, "compact") for text, case in zip(texts, found, strict=True)
        ]
        ranks = [ranking.rank_of(case.turn.target) or 21 for ranking, case in zip(read, found, strict=True)]
        result[f"{name}, valid"] = 100 * float(np.mean([ranking.valid for ranking in read]))
        result[f"{name}, NDCG@10"] = float(by_user(np.array(ranks), owners).mean())
    return result


def _best(model: Any, encoder: Encoder, shown: Sequence[Example]) -> Rows:
    """The best of some drawn answers: as told by the truth, and as the model itself holds likeliest."""
    import torch

    told_which, own = [], []
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for start in range(0, len(shown), 50):
            part = shown[start : start + 50]
            logits = answer(model, encoder, part, rng).scores[:, None].expand(-1, _BEST_OF, -1, -1)
            drawn = torch.distributions.Categorical(logits=logits).sample()
            targets = torch.tensor([example.target for example in part])[:, None].expand(-1, _BEST_OF)
            ranks = ranks_of(drawn, targets)
            likely = logits.gather(-1, drawn[..., None]).sum((2, 3)).argmax(-1)
            told_which += ranks.min(-1).values.tolist()
            own += ranks[torch.arange(len(part)), likely].tolist()
    return {f"SFT, likeliest of {_BEST_OF} drawn": own, f"SFT, best of {_BEST_OF} drawn (told which)": told_which}


def table(results: Sequence[dict[str, Any]], unit: float, users: str) -> str:
    """Results as Markdown: means over seeds and users, errors over users, paired intervals."""
    owners = results[0]["users"]
    ranks: dict[str, list[Any]] = {}
    for result in results:
        for name, found in result["rows"].items():
            ranks.setdefault(name, []).append(np.array(found))
    first, tenth = (
        {name: np.mean([by_user(each, owners, k) for each in found], axis=0) for name, found in ranks.items()}
        for k in (1, 10)
    )
    lines = [
        f"NDCG in percent on {len(tenth[SFT])} {users} users; errors, and 95 % intervals of paired differences, over "
        f"users, seeds averaged first. SFT {_UNITS_SFT * unit:.0f} CPU s, what follows {unit:.0f} each.",
        "",
        "| | seeds | NDCG@1 | NDCG@10 | minus SFT | minus more SFT |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(ranks, key=lambda name: tenth[name].mean()):
        gaps = [_gap(tenth, name, other) for other in (SFT, "more SFT")]
        lines.append(
            f"| {name} | {len(ranks[name])} | {told(first[name])} | {told(tenth[name])} | {' | '.join(gaps)} |"
        )
    lines += [
        "",
        f"Answers written token by token, by the first {_DECODED} candidate lists; and what training saw.",
        "",
        "| | weights | CPU s | steps | valid, free | held | NDCG@10, free | held | in one pass | late in training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result["name"] for result in results):
        same = [result for result in results if result["name"] == name]
        asked = ("free, valid", "held, valid", "free, NDCG@10", "held, NDCG@10", "one pass, NDCG@10")
        written = [f"{np.mean([each[what] for each in same]):.1f}" if what in same[0] else "" for what in asked]
        late = ", ".join(f"{what} {np.mean([each['log'][what] for each in same]):.3g}" for what in same[0]["log"])
        spent, steps = (np.mean([each[what] for each in same]) for what in ("seconds", "steps"))
        cells = [name, f"{same[0]['weights']:,}", f"{spent:.0f}", f"{steps:.0f}", *written, late]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gap(values: dict[str, Any], name: str, other: str) -> str:
    if name == other or other not in values:
        return ""
    gap = values[name] - values[other]
    low, high = interval(gap)
    return f"{gap.mean():+.1f} ({low:+.1f} to {high:+.1f})"

"""The miniature experiment: the paper's questions, asked of a model that two cores train from nothing.

First each seed's and size's SFT from a blind teacher; then, from those very weights, each of `ARMS` for the same CPU
time. All is judged on validation or test users by their held-out turn. There are two teachers: one that knows what a
reader of the catalogue could know, and one that has counted what other users took together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starec_agents.tasks import parse_ranking
from starec_env import load_dataset, prepare
from starec_env.data.splits import Split
from starec_env.errors import TrainingError
from starec_env.metrics import interval, ndcg, of_means, per_user
from starec_env.types import Dataset, Id
from starec_training.features import FEATURES, Evidence
from starec_training.miniature.data import Descriptions, Encoder, Example, Prompts, split_able_users, tokens_for
from starec_training.miniature.decode import decode
from starec_training.miniature.heldout import Case, Keeps, asked, cases, remembering
from starec_training.miniature.model import answer, load, new_model, save
from starec_training.miniature.train import Settings, judged, ranks_of, train

Users = Literal["validation", "test"]
Teacher = Literal["content", "collaborative"]
TEACHERS: dict[Teacher, Sequence[str]] = {"content": FEATURES[2:], "collaborative": FEATURES}
"""What each sees: popularity, kinds and years; or these and what was taken together."""
Rows = dict[str, list[int]]
# Ranks of the true item, by the name of what ranked.

SFT, DIRECT, BOTH = "SFT", "GRPO without SFT", "GRPO, memory texts too"
_GRPO = Settings("grpo", learning_rate=4e-4, rehearsal=0.05)
ARMS: dict[str, Settings] = {
    "GRPO": _GRPO,
    "more SFT": Settings("sft", learning_rate=1.5e-3, batch=8, popular_first=0),
    "true item": Settings("true item", learning_rate=7e-4),
    BOTH: replace(_GRPO, texts=8, reflecting=0.25),
    "Reinforce++": replace(_GRPO, method="reinforce++"),
    "GRPO, no KL": replace(_GRPO, beta=0.0),
    DIRECT: replace(_GRPO, beta=0.0),
}
"""What follows SFT, each for the same CPU time, from the same weights; but `DIRECT` from the untrained model. Learning
rates were chosen on validation users."""
ASKED_OF_BOTH = ("GRPO", "more SFT", "true item")
"""The arms that follow the collaborative teacher's SFT too."""
OTHER_SIZES = ("small", "large")

_UNITS_SFT, _BEST_OF, _DECODED = 4.0, 8, 150
_TRAINING = 0.73  # of all the time; the rest is for judging
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
    teacher: Teacher = "content"

    @property
    def start(self) -> str:
        """The folder of the SFT model."""
        return f"{self.teacher}-{self.size}-{self.seed}"

    @property
    def name(self) -> str:
        """Of its row, among those of its teacher."""
        return self.arm if self.size == "medium" else f"{self.arm}, {self.size}"

    def file(self, out: Path) -> Path:
        """Where its result stands."""
        return out / f"{self.start}-{self.arm}.json"


@dataclass(frozen=True)
class Ground:
    """What all jobs stand on."""

    windows: Dataset
    streams: Dataset
    split: Split
    evidence: Evidence

    def taught_by(self, teacher: Teacher) -> Ground:
        """With only what this teacher sees (3 CPU seconds)."""
        return replace(self, evidence=self.evidence.only(TEACHERS[teacher]))


def ground(dataset: str, data_dir: str | None = None) -> Ground:
    """Load a data set, split its users, and count what its training users did (20 CPU seconds)."""
    loaded = load_dataset(dataset, data_dir)
    windows, streams = prepare(loaded), prepare(loaded, max_length=None)
    split = split_able_users(windows)
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
    tell: Callable[[str], None] = lambda _: None,
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
        tell: Gets a line for each finished job.

    Raises:
        TrainingError: The folder holds a run of other settings.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    others = [Job(0, size) for size in OTHER_SIZES]
    follow: dict[Teacher, Sequence[str]] = {"content": list(ARMS), "collaborative": ASKED_OF_BOTH}
    starts = [Job(seed, "medium", SFT, teacher) for teacher in follow for seed in range(seeds)]
    arms = [Job(start.seed, "medium", arm, start.teacher) for start in starts for arm in follow[start.teacher]]
    jobs = [*starts, *others, *arms, *(job._replace(arm="GRPO") for job in others)]
    stages = [[job for job in jobs if job.arm == SFT], [job for job in jobs if job.arm != SFT]]
    units = sum(_UNITS_SFT if job.arm == SFT else 1.0 for job in jobs)
    unit = _TRAINING * minutes * 60 * processes / units
    wanted = {"dataset": dataset, "users": users, "unit": round(unit, 1), "seeds": seeds}
    _claim(out / "settings.json", wanted)
    left = [job for job in jobs if not job.file(out).exists()]
    if left:
        tell(f"{len(left)} of {len(jobs)} jobs to do: {_about(left, unit, processes)}")
    others_children = set(active_children())
    options: Any = {"initializer": _begin, "initargs": (dataset, data_dir)}
    with ProcessPoolExecutor(min(processes, max(1, len(left))), get_context("spawn"), **options) as pool:
        try:
            for stage in stages:
                waiting = {pool.submit(_job, job, out, users, unit): job for job in stage if job in left}
                for future in as_completed(waiting):
                    future.result()
                    left.remove(job := waiting[future])
                    tell(
                        f"{len(jobs) - len(left)}/{len(jobs)} {_heard(job, out)}; {_about(left, unit, processes)} left"
                    )
        except BaseException:
            for child in set(active_children()) - others_children:
                child.terminate()
            raise
    text = table([json.loads(job.file(out).read_text()) for job in jobs], unit, users)
    (out / "table.md").write_text(text)
    return text


def _about(jobs: Sequence[Job], unit: float, processes: int) -> str:
    units = sum(_UNITS_SFT if job.arm == SFT else 1.0 for job in jobs)
    return f"some {units * unit / _TRAINING / 60 / processes:.0f} minutes on {processes} free cores"


def _heard(job: Job, out: Path) -> str:
    result = json.loads(job.file(out).read_text())
    value = by_user(result["rows"][job.name], result["users"]).mean()
    return (
        f"{job.teacher} teacher, seed {job.seed}, {job.name}: NDCG@10 {value:.1f} after {result['seconds']:.0f} CPU s"
    )


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
    assert _ground is not None
    base = _ground.taught_by(job.teacher)
    found = cases(base.windows, getattr(base.split, users))
    stage = int(job.arm != SFT)  # all arms draw the same prompts, and others than SFT drew
    prompts = Prompts(base.streams, base.evidence, base.split.train, 2 * job.seed + stage)
    start = out / job.start
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
    if job == Job(0, "medium", SFT, job.teacher):
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
    name = job.name
    rows[name] = judged(model, encoder, shown).tolist()
    result: dict[str, Any] = job._asdict() | {"weights": sum(weight.numel() for weight in model.parameters())}
    result |= {
        "name": name,
        "users": [str(case.user) for case in found],
        "seconds": seconds,
        "steps": len(settings.log),
        "log": _late(settings.log),
    }
    if job.size == "medium":
        result |= _decoded(model, encoder, found[:_DECODED], shown[:_DECODED])
        if job.arm == SFT:
            rows |= _best(model, encoder, shown)
        if job.arm in (SFT, "GRPO", BOTH) and job.teacher == "content":
            for what, keeps in _MEMORIES.items():
                memories = remembering(model, encoder, found, keeps, Descriptions(base.evidence))
                recalled = [asked(case.turn, memory) for case, memory in zip(found, memories, strict=True)]
                rows[f"{name}: {what}"] = judged(model, encoder, encoder.encode(recalled)).tolist()
    result["rows"] = rows
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
        "the teacher itself": features / evidence.scale @ evidence.weights,
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
            parse_ranking(text, case.turn.query.candidates, "scores") for text, case in zip(texts, found, strict=True)
        ]
        ranks = [ranking.rank_of(case.turn.target) or 21 for ranking, case in zip(read, found, strict=True)]
        result[f"{name}, valid"] = 100 * float(np.mean([ranking.valid for ranking in read]))
        result[f"{name}, NDCG@10"] = float(by_user(ranks, owners).mean())
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
    """Results as Markdown, a table a teacher: means over seeds and users, errors over users, paired intervals."""
    n = len(set(results[0]["users"]))
    lines = [
        f"NDCG in percent on {n} {users} users; errors, and 95 % intervals of paired differences, over users, seeds "
        f"averaged first. SFT {_UNITS_SFT * unit:.0f} CPU s, what follows {unit:.0f} each.",
    ]
    for teacher in dict.fromkeys(result["teacher"] for result in results):
        lines += ["", f"**The {teacher} teacher**", ""]
        lines += _compared([result for result in results if result["teacher"] == teacher])
    lines += [
        "",
        f"Answers written token by token, by the first {_DECODED} candidate lists; and what training saw.",
        "",
        "| | teacher | weights | CPU s | steps | valid, free | held | NDCG@10, free | held | one pass | late |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for teacher, name in dict.fromkeys((result["teacher"], result["name"]) for result in results):
        same = [result for result in results if (result["teacher"], result["name"]) == (teacher, name)]
        asked = ("free, valid", "held, valid", "free, NDCG@10", "held, NDCG@10", "one pass, NDCG@10")
        written = [f"{np.mean([each[what] for each in same]):.1f}" if what in same[0] else "" for what in asked]
        late = ", ".join(f"{what} {np.mean([each['log'][what] for each in same]):.3g}" for what in same[0]["log"])
        spent, steps = (np.mean([each[what] for each in same]) for what in ("seconds", "steps"))
        cells = [name, teacher, f"{same[0]['weights']:,}", f"{spent:.0f}", f"{steps:.0f}", *written, late]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _compared(results: Sequence[dict[str, Any]]) -> list[str]:
    # Rows of one teacher; a row of another size is compared with its own size's SFT, on the same seeds.
    owners = results[0]["users"]
    ranks: dict[str, list[Any]] = {}
    for result in results:
        for name, found in result["rows"].items():
            ranks.setdefault(name, []).append(np.array(found))
    first, tenth = (
        {name: np.array([by_user(each, owners, k) for each in found]) for name, found in ranks.items()} for k in (1, 10)
    )
    compared = (SFT, "more SFT", "true item")
    lines = [
        f"| | seeds | NDCG@1 | NDCG@10 | {' | '.join(f'minus {other}' for other in compared)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(ranks, key=lambda name: tenth[name].mean()):
        size = next((f", {size}" for size in OTHER_SIZES if name.endswith(f", {size}")), "")
        gaps = [_gap(tenth, name, other + size) for other in compared]
        means = [_shown(values[name].mean(0)) for values in (first, tenth)]
        lines.append(f"| {name} | {len(ranks[name])} | {' | '.join(means + gaps)} |")
    return lines


def _gap(values: dict[str, Any], name: str, other: str) -> str:
    if name == other or other not in values:
        return ""
    gap = values[name].mean(0) - values[other].mean(0)
    low, high = interval(gap)
    return f"{gap.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def by_user(ranks: Sequence[int] | NDArray[np.int64], owners: Sequence[Id], k: int = 10) -> NDArray[np.float64]:
    """(users,) mean NDCG@k of each user's cases, in percent; owners tells the user of each case."""
    return 100 * per_user(ndcg(ranks, k), np.array([str(owner) for owner in owners]))


def _shown(means: NDArray[np.float64]) -> str:
    found = of_means("", means)
    return f"{found.mean:.1f} ± {found.se:.1f}"

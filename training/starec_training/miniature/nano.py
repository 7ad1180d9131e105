"""The recipe of starec-nano, the model that comes with the package."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from starec_agents.serving.card import NANO, ModelCard
from starec_env.data.splits import Split
from starec_env.metrics import ndcg
from starec_training.miniature.data import Encoder, Prompts, tokens_for
from starec_training.miniature.decode import decode
from starec_training.miniature.experiment import ground
from starec_training.miniature.gguf import write_gguf
from starec_training.miniature.heldout import asked, cases
from starec_training.miniature.model import new_model, save
from starec_training.miniature.train import Settings, judged, train

STAGES = (
    Settings(seconds=660.0, learning_rate=1.5e-3, batch=8),
    Settings(seconds=600.0, learning_rate=1e-3, batch=4, reflecting=2.0, popular_first=0.0),
    Settings(seconds=150.0, learning_rate=9e-4, batch=8, reflecting=1.0, popular_first=0.0),
    Settings(seconds=90.0, learning_rate=5e-4, batch=8, reflecting=2.0, popular_first=0.0),
)
"""Rankings with a few memory updates, then more and more updates; CPU seconds on one thread."""

_LONGEST = 96  # tokens


def make(folder: str | Path, seed: int = 1) -> None:
    """Train starec-nano on ml-latest-small's training users and write what ships; prints validation users' NDCG@10.

    Args:
        folder: Gets the weights in both formats, the tokenizer and the card (`starec.json`).
        seed: Of weights, prompts and their order.
    """
    import torch

    torch.set_num_threads(1)
    base = ground("ml-latest-small")
    prompts = Prompts(base.streams, base.evidence, base.split.train, seed)
    encoder = Encoder(tokens_for(prompts), base.streams)
    shown = encoder.encode([asked(case.turn) for case in cases(base.windows, base.split.validation)])
    model = new_model(base.evidence, encoder, shown[0], seed=seed)

    def check(step: int) -> None:
        print(f"step {step}: validation NDCG@10 {100 * ndcg(judged(model, encoder, shown), 10).mean():.1f}", flush=True)

    for settings in STAGES:
        settings = replace(settings, seed=seed, log=[])
        train(model, encoder, prompts, settings, check=check)
        check(len(settings.log))
    unseen = Prompts(base.streams, base.evidence, base.split.validation, seed)
    print(f"memory texts of validation users, shares: {truth(model, encoder, unseen)}")
    publish(model, encoder.tokenizer, base.split, folder)


def truth(model: Any, encoder: Encoder, prompts: Prompts, n: int = 300) -> dict[str, float]:
    """Shares of what a model's memory texts say that the teacher's, which are true, say too.

    Args:
        model: Writes the texts, greedily.
        encoder: Of its tokenizer.
        prompts: Draws the updates.
        n: How many.

    Returns:
        Shares of kinds liked and disliked, decades and verdicts that are right, of texts that name a kind twice, and of
        texts that run on past their end.
    """
    examples = encoder.encode(list(prompts.draw(n, reflecting=1.0)))
    answers = decode(model, [example.ids[: example.begin] for example in examples], encoder.end, most=_LONGEST)
    texts = encoder.tokenizer.batch_decode([ids for (ids,) in answers], skip_special_tokens=True)
    found: dict[str, list[bool]] = {name: [] for name in ("liked kinds", "disliked kinds", "decade", "verdict")}
    twice = []
    for said, example in zip(map(_facts, texts), map(_facts, (each.answer for each in examples)), strict=True):
        for name in found:
            found[name] += [each in example[name] for each in set(said[name])]
        twice.append(any(len(said[name]) > len(set(said[name])) for name in found))
    shares = {name: round(sum(right) / max(1, len(right)), 3) for name, right in found.items()}
    long = sum(len(ids) >= _LONGEST for (ids,) in answers)
    return shares | {"a kind twice": round(sum(twice) / n, 3), "no end": round(long / n, 3)}


def _facts(text: str) -> dict[str, list[str]]:
    likes = re.search(r"Likes (.*?)(?:, above all of the (\d+s))?\.", text)
    dislikes = re.search(r"Often dislikes (.*?)\.", text)
    return {
        "liked kinds": likes[1].split(", ") if likes else [],
        "disliked kinds": dislikes[1].split(", ") if dislikes else [],
        "decade": [likes[2]] if likes and likes[2] else [],
        "verdict": re.findall(r"(?:As predicted|Against the prediction), the last was (?:dis)?liked", text)[:1],
    }


def publish(model: Any, tokenizer: Any, split: Split, folder: str | Path) -> None:
    """Write a model in both formats, and whom it was trained on, chosen by and never shown."""
    folder = Path(folder)
    save(model, tokenizer, folder)
    write_gguf(model, tokenizer, folder / f"{NANO}.gguf", NANO, "see the model card")
    ModelCard(stage="sft", base_model="none: embeddings initialised from the training users", split=split).save(folder)

"""The recipe of starec-nano, the model that comes with the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from starec_agents.weights import NANO
from starec_training.miniature.data import Encoder, Prompts, Split, tokens_for
from starec_training.miniature.experiment import ground
from starec_training.miniature.gguf import write_gguf
from starec_training.miniature.heldout import asked, cases
from starec_training.miniature.model import new_model, save
from starec_training.miniature.train import Settings, judged, mean_ndcg, train

STAGES = (
    Settings(seconds=660.0, learning_rate=1.5e-3, batch=8),
    Settings(seconds=600.0, learning_rate=1e-3, batch=4, reflecting=2.0, popular_first=0.0),
    Settings(seconds=150.0, learning_rate=9e-4, batch=8, reflecting=1.0, popular_first=0.0),
    Settings(seconds=90.0, learning_rate=5e-4, batch=8, reflecting=2.0, popular_first=0.0),
)
"""Rankings with a few memory updates, then more and more updates; CPU seconds on one thread.

The shipped weights had the first two in four goes, as texts were made easier to write truly (docs/miniature.md).
"""


def make(folder: str | Path, seed: int = 1) -> None:
    """Train starec-nano on ml-latest-small's training users and write what ships; prints validation users' NDCG@10.

    Args:
        folder: Gets the weights in both formats, the tokenizer and users.json.
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
        print(f"step {step}: validation NDCG@10 {mean_ndcg(judged(model, encoder, shown)):.1f}", flush=True)

    for settings in STAGES:
        settings = replace(settings, seed=seed, log=[])
        train(model, encoder, prompts, settings, check=check)
        check(len(settings.log))
    publish(model, encoder.tokenizer, base.split, folder)


def publish(model: Any, tokenizer: Any, split: Split, folder: str | Path) -> None:
    """Write a model in both formats, and whom it was trained on, chosen by and never shown."""
    folder = Path(folder)
    save(model, tokenizer, folder)
    write_gguf(model, tokenizer, folder / f"{NANO}.gguf", NANO, "see the model card")
    users = {"train": sorted(split.train), "validation": sorted(split.validation), "test": sorted(split.test)}
    (folder / "users.json").write_text(json.dumps(users) + "\n", encoding="utf-8")

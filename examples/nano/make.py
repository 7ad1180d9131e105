"""Make a starec-nano: a user agent of 2.4 million parameters, by SFT from a rule-based teacher.

    python examples/nano/make.py --out runs/nano --seed 1

Rankings of short and long lists first, then more and more memory updates, then long lists, twice. The result is written
as the package ships it: float16 weights for transformers and vLLM, a GGUF file for llama.cpp, whom it was trained on
(starec.json), and how its rankings answer a recommender's slates (calibration.json). A stopped run goes on when called
again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf_file import write_gguf
from loss import ScoresTrainer
from miniature import LISTS, Data, begin, mixed, sft_config
from start import save

from starec_agents import UserAgent, calibrate
from starec_agents.agent_options import NANO_CALIBRATION, NANO_FORMAT, NANO_HISTORY
from starec_agents.calibration import Calibration
from starec_agents.serving.card import NANO, ModelCard
from starec_env.data.splits import Split
from starec_training.checkpoints import load_policy
from starec_training.features import FEATURES
from starec_training.generation import LocalChat
from starec_training.sft import train_sft

BATCH = 16
CALIBRATED_ON = 10
"""Interactions of each validation user."""
LONG = (20, 20, 20, 10)
"""Lists that teach the most scores a second: reading a prompt costs more than its answer."""


class Stage(NamedTuple):
    """One stage of SFT; its learning rate rises in 50 steps and falls to 0."""

    steps: int
    rate: float
    reflecting: float
    """Share of memory updates."""
    popular_first: float = 0.0
    """Share of the steps in which the teacher goes over from popularity to all that it sees."""
    lists: tuple[int, ...] = LISTS
    """Candidates of each step's rankings, in turn."""


STAGES = (
    Stage(1600, 1.5e-3, 0.15, popular_first=0.12),
    Stage(1400, 1e-3, 0.6),
    Stage(300, 5e-4, 0.6),
    Stage(1300, 1.2e-3, 0.2, lists=LONG),
    Stage(900, 6e-4, 0.3, lists=(20,)),
)


def make(out: Path, data: Data, seed: int, stages: Sequence[Stage], size: str) -> Path:
    """Train and publish; returns the folder with what ships."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / "start"
    if not folder.exists():
        begin(folder, data, data.prompts(seed), size, seed)
    for number, stage in enumerate(stages):
        prompts = data.prompts(100 * seed + number)
        rows = mixed(prompts, stage.steps, BATCH, stage.popular_first, stage.reflecting, stage.lists)
        config = sft_config(out / f"stage-{number}", stage.steps, BATCH, stage.rate, seed)
        trained = train_sft(folder, rows, config, trainer_class=ScoresTrainer, heldout=data.split.test)
        assert trained is not None  # no minutes were given
        folder = trained
    model, tokenizer = load_policy(folder)
    return publish(model, tokenizer, data, out / NANO)


def publish(model: Any, tokenizer: Any, data: Data, folder: Path) -> Path:
    """Write a model as the package ships it; returns the folder."""
    model.config.use_cache = True  # training had turned it off
    save(model, tokenizer, folder, torch.float16)
    write_gguf(model, tokenizer, folder / f"{NANO}.gguf", NANO, "see the model card")
    users = {part: sorted(getattr(data.split, part)) for part in ("train", "validation", "test")}
    start = "none: embeddings initialised from the training users"
    ModelCard(stage="sft", base_model=start, split=Split.of(data.windows, **users)).save(folder)
    return folder


def calibrated(folder: str | Path, data: Data) -> Calibration:
    """How a model's rankings answer slates: fitted on the last interactions of the validation users."""
    chat = LocalChat(*load_policy(folder), model=NANO, batch_size=64)
    agent = UserAgent.factory(chat, answer_format=NANO_FORMAT, max_history=NANO_HISTORY, temperature=0.0)
    known = {"dataset": data.windows.name, "data_hash": data.windows.hash, "users": "validation", "model": NANO}
    return calibrate(agent, data.windows, data.split.validation, turns=CALIBRATED_ON, made_from=known)


def main() -> None:
    """Make it on ml-latest-small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/nano"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = Data(teacher_sees=FEATURES)
    folder = make(args.out, data, args.seed, STAGES, "medium")
    calibrated(folder, data).save(folder / NANO_CALIBRATION.name)
    print(folder)


if __name__ == "__main__":
    main()

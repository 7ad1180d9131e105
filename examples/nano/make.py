"""Make a starec-nano: a user agent of 2.4 million parameters, by SFT from a rule-based teacher.

    python examples/nano/make.py --out runs/nano --seed 1

Rankings first, then more and more memory updates. The result is written as the package ships it: float16 weights for
transformers and vLLM, a GGUF file for llama.cpp, and whom it was trained on. A stopped run goes on when called again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from gguf_file import write_gguf
from loss import ScoresTrainer
from miniature import Data, begin, mixed, sft_config
from start import save

from starec_agents.serving.weights import NANO
from starec_training.checkpoints import load_policy
from starec_training.features import FEATURES
from starec_training.sft import train_sft

STAGES = ((1600, 1.5e-3, 0.12, 0.15), (1400, 1e-3, 0.0, 0.6), (300, 5e-4, 0.0, 0.6))
"""Steps of 16 rows, learning rate, share of steps that begin with popularity, share of memory updates."""


def make(out: Path, data: Data, seed: int, stages: Sequence[tuple[int, float, float, float]], size: str) -> Path:
    """Train and publish; returns the folder with what ships."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / "start"
    if not folder.exists():
        begin(folder, data, data.prompts(seed), size, seed)
    for number, (steps, rate, popular, reflecting) in enumerate(stages):
        rows = mixed(data.prompts(100 * seed + number), steps, 16, popular, reflecting)
        config = sft_config(out / f"stage-{number}", steps, 16, rate, seed)
        trained = train_sft(folder, rows, config, trainer_class=ScoresTrainer, heldout=data.split.test)
        assert trained is not None  # no minutes were given
        folder = trained
    model, tokenizer = load_policy(folder)
    save(model, tokenizer, out / NANO, torch.float16)
    write_gguf(model, tokenizer, out / NANO / f"{NANO}.gguf", NANO, "see the model card")
    users = {part: sorted(getattr(data.split, part)) for part in ("train", "validation", "test")}
    (out / NANO / "users.json").write_text(json.dumps(users) + "\n", encoding="utf-8")
    return out / NANO


def main() -> None:
    """Make it on ml-latest-small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/nano"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(make(args.out, Data(teacher_sees=FEATURES), args.seed, STAGES, "medium"))


if __name__ == "__main__":
    main()

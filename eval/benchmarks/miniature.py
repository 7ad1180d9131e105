"""Tokens a second that the miniature writes: starec-nano's memory texts, in groups as GRPO draws them and one a prompt.

    python eval/benchmarks/miniature.py --processes 2

Each process has a thread of its own, as in `starec train miniature`. Reading the prompts is within the time, turning
text to tokens isn't. Beside it transformers' own loop, in one process, on the same prompts.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from starec_agents.serving.weights import find_folder
from starec_env import load_dataset, prepare
from starec_training.features import Evidence
from starec_training.generation import generate
from starec_training.miniature.data import Encoder, Prompts, split_able_users
from starec_training.miniature.decode import decode
from starec_training.miniature.model import load

GROUPED, ALONE, OWN_LOOP = "groups of 16", "one a prompt", "transformers' loop, one a prompt"


def begin() -> None:
    torch.set_num_threads(1)
    dataset = prepare(load_dataset("ml-latest-small"))
    users = split_able_users(dataset).train
    model, tokenizer = load(find_folder("starec-nano", ""))
    prompts = Prompts(dataset, Evidence(dataset, users[:100], fit_turns=200), users, seed=1)
    encoder = Encoder(tokenizer, dataset)
    READY.update(model=model.eval(), encoder=encoder, updates=encoder.encode(list(prompts.draw(128, reflecting=1.0))))


READY: dict[str, Any] = {}


def timed(what: str) -> tuple[float, float, int, float]:
    """Wall clock at begin and end, tokens, CPU seconds."""
    model, encoder, updates = READY["model"], READY["encoder"], READY["updates"]
    prompts = [example.ids[: example.begin] for example in updates]
    began, cpu = time.time(), time.process_time()
    if what == OWN_LOOP:
        said = generate(model, encoder.tokenizer, [example.messages for example in updates], max_tokens=48)
        count = sum(len(answer.token_ids) for answer in said)
    else:
        group, batch = (16, 8) if what == GROUPED else (1, 64)
        answers = decode(model, prompts, encoder.end, group=group, batch=batch, most=48, sample=True)
        count = sum(len(ids) for texts in answers for ids in texts)
    return began, time.time(), count, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    found: dict[str, Any] = {"processes": args.processes, "torch": torch.__version__}
    for what in (GROUPED, ALONE, OWN_LOOP):
        n = 1 if what == OWN_LOOP else args.processes
        with ProcessPoolExecutor(n, get_context("spawn"), initializer=begin) as pool:
            list(pool.map(timed, [what] * n))  # warm
            done = list(pool.map(timed, [what] * 3 * n))
        tokens, wall = sum(each[2] for each in done), max(each[1] for each in done) - min(each[0] for each in done)
        found[what] = {
            "tokens_per_s": tokens / wall,
            "tokens_per_cpu_s": tokens / sum(each[3] for each in done),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

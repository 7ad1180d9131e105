"""`kill -9` at seeded moments of small runs, each resumed until it is complete: the records must be identical.

    python eval/benchmarks/kills.py [--kills 100] [--workers 2]

A run of 24 users is started in a process of its own and killed at a random moment after it began, while it starts,
runs, merges or writes its tables; then it is resumed and killed again, until a session ends in peace. After that the
next run begins. Checked for each run: steps.jsonl is that of an unbroken one, and so are the metrics.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support import make_dataset  # noqa: E402

from starec_agents import ScriptedChat, UserAgent, read_steps, run_population, scripted_user  # noqa: E402


def simulate(out: Path, workers: int) -> None:
    agent = UserAgent.factory(ScriptedChat(scripted_user(), latency=0.005))
    run_population(
        make_dataset(24), agent, out=out, turns=4, concurrency=6, resume=(out / "run.json").exists(), workers=workers,
        progress=False,
    )  # fmt: skip


def content(out: Path) -> tuple[str, dict[str, float]]:
    text = re.sub(r'"latency":[0-9.e-]+', '"latency":0', "".join(step.model_dump_json() for step in read_steps(out)))
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["wall_s"]
    return text, metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return simulate(args.child, args.workers)
    moments, kills, runs = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        simulate(whole, 1)
        while kills < args.kills:
            out = Path(folder) / str(runs)
            command = [sys.executable, __file__, "--child", out, "--workers", str(args.workers)]
            while True:
                process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
                while not out.exists() and process.poll() is None:
                    time.sleep(0.002)
                before = lines(out)
                if moments.random() < 0.9:  # else it is killed while it still starts
                    while lines(out) == before and process.poll() is None:
                        time.sleep(0.01)
                time.sleep(moments.uniform(0, 0.4))
                process.kill()
                if process.wait() != -signal.SIGKILL:
                    break
                kills += 1
            assert process.returncode == 0
            assert content(out) == content(whole), f"run {runs} differs"
            assert len(list(read_steps(out))) == len(list(read_steps(whole)))
            runs += 1
            print(f"{kills} kills, {runs} runs, all identical", flush=True)


def lines(out: Path) -> int:
    total = 0
    for path in out.glob("steps*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # a worker's file goes while the run merges it
            total += path.read_bytes().count(b"\n")
    return total


if __name__ == "__main__":
    main()

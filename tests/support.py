"""Functions that several test files import: `from support import shared_data, make_dataset`."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from starec_env.types import Dataset, Item

_DATA = Path(os.environ.get("STAREC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared_data(*parts: str) -> Path:
    """A file or folder of the real data beside the checkout; skips the test where it is absent."""
    path = _DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs real data that isn't here: {Path(*parts)} (set STAREC_TEST_DATA to its folder)")
    return path


def vllm_python() -> str:
    """The interpreter that has vLLM; skips the test where there is none."""
    path = os.environ.get("STAREC_VLLM_PYTHON", Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python")
    if not Path(path).exists():
        pytest.skip(f"needs vLLM at {path}: make test-vllm")
    return str(path)


def make_dataset(n_users: int = 12, n_items: int = 60, length: int = 14, seed: int = 0) -> Dataset:
    """A small seeded data set: each user rates `length` distinct items 1 to 5 at increasing times."""
    rng = np.random.default_rng(seed)
    genres = ("Drama", "Comedy", "Horror", "Western")
    items = tuple(
        Item(100 + i, f"Film {i:02d} ({1950 + i})", {"year": str(1950 + i), "genres": genres[i % 4]})
        for i in range(n_items)
    )
    rows = np.concatenate([rng.permutation(n_items)[:length] for _ in range(n_users)])
    return Dataset(
        name="tiny",
        domain="movie",
        items=items,
        user_ids=np.arange(1, n_users + 1),
        indptr=np.arange(n_users + 1) * length,
        item_indices=rows.astype(np.int32),
        ratings=rng.integers(1, 6, n_users * length).astype(np.float32),
        timestamps=np.tile(np.arange(length), n_users).astype(np.int64),
        demographics=[{"gender": "F" if u % 2 else "M", "age": "25-34"} for u in range(n_users)],
    )


def record(out: Path) -> str:
    """A run's steps, a line each, without what tells the time."""
    from starec_agents.runs.reading import read_steps

    lines = [step.model_dump_json() for step in read_steps(out)]
    return "".join(re.sub(r'"latency":[0-9.e-]+', '"latency":0', line) + "\n" for line in lines)

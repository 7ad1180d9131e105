"""A cut of eval/benchmarks/fuzz.py: a few thousand hostile inputs; no exception but ours, no hang, memory bounded."""

import random
import tracemalloc
from pathlib import Path

import pytest
from fuzz_targets import (
    FILES,
    check_loader,
    check_parsers,
    check_record,
    check_run,
    check_step,
    random_text,
    whole_record,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_dataset

from starec_env.replay.env import UserFeedbackEnv


def test_no_answer_breaks_the_parsers_or_makes_them_keep_memory() -> None:
    rng = random.Random(0)
    for _ in range(200):
        check_parsers(random_text(rng))
    tracemalloc.start()
    for _ in range(1500):
        check_parsers(random_text(rng))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 5e6 and peak < 20e6


@given(st.text(st.characters(), max_size=300))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_text_at_all_breaks_the_parsers(text: str) -> None:
    check_parsers(text)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_data_set_is_loaded_or_refused_by_name(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    for _ in range(150):
        check_loader(name, tmp_path, rng)


def test_a_damaged_record_is_read_or_refused_by_name(tmp_path: Path) -> None:
    files = whole_record(tmp_path)
    rng = random.Random(0)
    for _ in range(150):
        check_record(files, tmp_path, rng)


def test_any_answers_to_both_tasks_are_recorded_with_their_reports(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(60):
        check_run(tmp_path / "run", rng)


def test_any_action_is_stepped_or_refused_by_name() -> None:
    env = UserFeedbackEnv(make_dataset())
    rng = random.Random(0)
    for _ in range(1000):
        check_step(env, rng)

"""What a shell offers: as bash asks for it, through click."""

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from starec_env.cli import starec
from starec_env.data import NAMES
from starec_eval.rankers import BASELINES


def completions(line: str) -> list[str]:
    """What a shell would offer after `line`; a file is said by its kind alone."""
    *words, last = line.split(" ")[1:]
    found = ShellComplete(starec, {}, "starec", "_STAREC_COMPLETE").get_completions(words, last)
    return [item.value if item.type == "plain" else item.type for item in found]


def test_bash_is_offered_the_commands():
    asked = {"_STAREC_COMPLETE": "bash_complete", "COMP_WORDS": "starec s", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "starec_env.cli"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,serve", "plain,simulate", "plain,show"]


def test_a_data_set_is_completed_and_so_is_a_file():
    assert completions("starec data fetch ml-1") == ["ml-1m", "ml-100k"]
    assert completions("starec simulate --dataset ") == [*NAMES]
    assert completions("starec simulate --dataset mine.c") == ["file"]


def test_methods_are_completed_one_after_another():
    assert completions("starec eval --methods random,item-k") == ["random,item-knn", "random,item-knn-full"]
    offered = completions("starec eval --methods ")
    assert {*BASELINES, "ensemble", "starec", "llmrank"} <= set(offered)


@pytest.mark.parametrize("line, offered", [("--agent pl", "planner"), ("--reading p", "paper")])
def test_other_names_are_completed(line: str, offered: str):
    command = "simulate" if "agent" in line else "eval"
    assert completions(f"starec {command} {line}") == [offered]


def test_our_own_options_of_training_are_completed():
    assert completions("starec train sft --row") == ["--rows"]

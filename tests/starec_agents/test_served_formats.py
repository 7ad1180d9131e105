"""A real llama.cpp server drives populations in every answer format, with thoughts apart from the text and in it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from held import Held

from starec_agents import OpenAIChat, UserAgent, read_steps, run_population
from starec_agents.llm.base import Endpoint
from starec_agents.runs.population import Run
from starec_agents.runs.show import metrics_text
from starec_agents.serving.serve import local_server
from starec_agents.serving.weights import find_gguf
from starec_env import load_dataset, prepare
from starec_env.types import Dataset

SMALL: dict[str, Any] = {"users": 2, "turns": 2, "n_candidates": 5, "progress": False}
THINKING = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['reasoning_content'] %}"
    "{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n' }}{% endif %}"
    "{{ message['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""starec-nano's chat template, with thoughts: llama.cpp takes those apart whose marks a template names."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    for package in ("xllamacpp", "gguf"):
        pytest.importorskip(package)
    model = tmp_path_factory.mktemp("model") / "starec-nano.gguf"
    copy = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", THINKING]
    subprocess.run([*copy, find_gguf("starec-nano"), model], check=True, capture_output=True)
    with local_server(str(model), parallel=4, context=4096) as served:
        yield served.model_copy(update={"max_tokens": 600})


@pytest.fixture(scope="module")
def films() -> Dataset:
    return prepare(load_dataset("ml-latest-small"))


def run(films: Dataset, llm: Any, answer_format: str, out: Path) -> Run:
    return run_population(films, UserAgent.factory(llm, answer_format=answer_format), out=out, concurrency=4, **SMALL)


@pytest.mark.parametrize("apart", [True, False], ids=["thought apart", "thought in the text"])
def test_the_papers_format_is_served_with_and_without_a_reasoning_parser(
    apart: bool, endpoint: Endpoint, films: Dataset, tmp_path: Path
) -> None:
    reader = endpoint.model_copy(update={"extra_body": {"reasoning_format": "deepseek" if apart else "none"}})
    metrics = run(films, Held(reader, "paper", "llamacpp"), "paper", tmp_path).metrics
    assert (metrics["valid_share"], metrics["valid_profiles"], metrics["steps"]) == (1, 1, 4), metrics
    for step in read_steps(tmp_path):
        assert [call.kind for call in step.calls] == ["rank", "reflect"]
        assert all(bool(call.reasoning) == apart for call in step.calls)
        assert all(("<think>" in call.completion) != apart for call in step.calls)
        assert f"<description>{step.memory.profile}" in " ".join(step.calls[1].completion.split())


def test_labels_are_served(endpoint: Endpoint, films: Dataset, tmp_path: Path) -> None:
    metrics = run(films, Held(endpoint, "labels", "llamacpp"), "labels", tmp_path).metrics
    assert (metrics["valid_share"], metrics["valid_profiles"], metrics["steps"]) == (1, 1, 4), metrics


def test_scores_are_served_held_to_a_schema(endpoint: Endpoint, films: Dataset, tmp_path: Path) -> None:
    metrics = run(films, OpenAIChat(endpoint), "scores", tmp_path).metrics
    assert (metrics["valid_share"], metrics["steps"]) == (1, 4), metrics


@pytest.mark.parametrize("answer_format", ["paper", "labels"])
def test_a_model_that_does_not_know_the_format_ends_with_the_cause_and_what_to_do(
    answer_format: str, endpoint: Endpoint, films: Dataset, tmp_path: Path
) -> None:
    metrics = run(films, OpenAIChat(endpoint), answer_format, tmp_path).metrics
    assert metrics["valid_share"] == 0 and metrics["steps"] == 4
    said = " ".join(metrics_text(metrics, tmp_path).split())
    assert "Most answers could not be read as whole rankings (" in said
    assert "--answer-format scores" in said


async def test_a_model_name_that_the_server_does_not_list_and_yet_answers_to_is_said(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    async with OpenAIChat(endpoint.model_copy(update={"model": "another", "max_tokens": 1})) as llm:
        assert "another" not in await llm.check()
    assert "answers to the model name 'another', which it doesn't list (" in caplog.text

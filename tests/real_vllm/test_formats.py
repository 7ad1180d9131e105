"""A real vLLM drives populations in every answer format, with a reasoning parser and without: `make test-vllm`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from held import Held
from support import vllm_python

from starec_agents.agent import UserAgent
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.runs.population import run_population
from starec_agents.runs.reading import read_steps
from starec_agents.runs.show import metrics_text
from starec_agents.serving.serve import local_server
from starec_env.types import Dataset

pytestmark = pytest.mark.vllm
POPULATION: dict[str, Any] = {"users": 4, "turns": 2, "n_candidates": 5, "progress": False, "concurrency": 4}
PARSER = (
    "--reasoning-parser",
    "olmo3",  # finds the marks in the text: SmolLM2 has no tokens for them, which other parsers ask for
    "--structured-outputs-config",
    '{"backend": "xgrammar", "disable_any_whitespace": true, "enable_in_reasoning": true}',
)


@pytest.fixture(scope="module", params=[(), PARSER], ids=["no parser", "reasoning parser"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Endpoint, bool]]:
    """The server, and whether it takes thoughts apart."""
    options: dict[str, Any] = {"engine": "vllm", "python": vllm_python(), "context": 4096, "parallel": 8}
    with local_server("smollm2", **options, extra=request.param) as endpoint:
        yield endpoint.model_copy(update={"max_tokens": 400}), bool(request.param)


def test_the_papers_format_is_served(served: tuple[Endpoint, bool], tiny_dataset: Dataset, tmp_path: Path) -> None:
    endpoint, apart = served
    agent = UserAgent.factory(Held(endpoint, "paper", "vllm"))
    metrics = run_population(tiny_dataset, agent, out=tmp_path, **POPULATION).metrics
    assert (metrics["valid_share"], metrics["valid_profiles"], metrics["steps"]) == (1, 1, 8), metrics
    for step in read_steps(tmp_path):
        assert [call.kind for call in step.calls] == ["rank", "reflect"]
        assert all(bool(call.reasoning) == apart for call in step.calls)
        assert all(("<think>" in call.completion) != apart for call in step.calls)
        assert f"<description>{step.memory.profile}" in " ".join(step.calls[1].completion.split())


def test_labels_are_served(served: tuple[Endpoint, bool], tiny_dataset: Dataset, tmp_path: Path) -> None:
    agent = UserAgent.factory(Held(served[0], "labels", "vllm"), answer_format="labels")
    metrics = run_population(tiny_dataset, agent, out=tmp_path, **POPULATION).metrics
    assert (metrics["valid_share"], metrics["valid_profiles"], metrics["steps"]) == (1, 1, 8), metrics


def test_scores_are_served_held_to_a_schema(
    served: tuple[Endpoint, bool], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    agent = UserAgent.factory(OpenAIChat(served[0]), answer_format="scores")
    metrics = run_population(tiny_dataset, agent, out=tmp_path, **POPULATION).metrics
    assert (metrics["valid_share"], metrics["steps"]) == (1, 8), metrics


def test_a_model_that_cannot_write_the_format_ends_with_the_cause_and_what_to_do(
    served: tuple[Endpoint, bool], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    agent = UserAgent.factory(OpenAIChat(served[0]))
    metrics = run_population(tiny_dataset, agent, out=tmp_path, **POPULATION).metrics
    assert metrics["valid_share"] < 0.5 and metrics["steps"] == 8
    said = " ".join(metrics_text(metrics, tmp_path).split())
    assert "Most answers could not be read as whole rankings (" in said and "--" in said.split("rankings (")[1]

"""A real vLLM answers slates: a hundred agents by their rankings, and some by a response held to the schema."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import vllm_python

from starec_agents.agent import UserAgent
from starec_agents.agent_options import NANO_CALIBRATION, NANO_FORMAT, NANO_HISTORY
from starec_agents.calibration import Calibration
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.responder import AgentResponder
from starec_agents.serving.serve import local_server
from starec_agents.serving.weights import NANO, SMOLLM2, nano_users
from starec_env import load_dataset, prepare
from starec_env.types import Dataset

pytestmark = pytest.mark.vllm
VLLM: dict[str, Any] = {"engine": "vllm", "context": 4096, "parallel": 8}


@pytest.fixture(scope="module")
def nano() -> Iterator[Endpoint]:
    """starec-nano."""
    with local_server(NANO, python=vllm_python(), **VLLM) as endpoint:
        yield endpoint


def test_a_hundred_agents_answer_a_round_by_their_rankings_and_go_on_from_a_snapshot(nano: Endpoint) -> None:
    dataset = prepare(load_dataset("ml-latest-small"))
    users = np.array([dataset.user_index(user) for user in nano_users()["test"][:100]])
    agent = UserAgent.factory(
        OpenAIChat(nano), answer_format=NANO_FORMAT, max_history=NANO_HISTORY, temperature=0.0, max_tokens=250
    )
    agents = AgentResponder(agent, dataset, through="ranking", calibration=Calibration.load(NANO_CALIBRATION))
    visits, rows, rng = agents.open(100), np.arange(100), np.random.default_rng(0)
    visits.begin(rows, users, np.zeros(100, np.int64))
    for _ in range(2):
        answers = visits.respond(rows, rng.permuted(np.tile(np.arange(dataset.n_items), (100, 1)), axis=1)[:, :10])
        assert answers.problems == ("",) * 100
        assert 10 < (answers.taken >= 0).sum() < 90
    visits.end(rows)
    lines = [line for user in visits.record(rows) for line in user]
    assert sum("slate" in line for line in lines) == 200 and all(line["calls"] for line in lines if "slate" in line)
    assert any(line["reflection"]["profile"] for line in lines if "reflection" in line)
    again = agents.open(100)
    again.restore(rows, visits.snapshot(rows))
    assert again.snapshot(rows) == visits.snapshot(rows)


def test_a_response_is_held_to_its_schema(tiny_dataset: Dataset) -> None:
    with local_server(SMOLLM2, python=vllm_python(), **VLLM) as endpoint:
        agent = UserAgent.factory(OpenAIChat(endpoint), answer_format="scores", max_tokens=500)
        visits, rows = AgentResponder(agent, tiny_dataset).open(4), np.arange(4)
        visits.begin(rows, rows, np.zeros(4, np.int64))
        answers = visits.respond(rows, np.arange(20).reshape(4, 5))
        texts = [user[0]["calls"][0]["completion"] for user in visits.record(rows)]
    # What a schema can't hold is a contradiction between two keys; all else it holds.
    held = {"", "rates what it did not take", "does not rate what it took"}
    assert set(answers.problems) <= held, (answers.problems, texts)
    assert (answers.taken[[problem != "" for problem in answers.problems]] == -1).all()

"""A real vLLM, driven as a user would drive it: `make test-vllm`.

STAREC_VLLM_PYTHON names the interpreter that has vLLM; `make test-vllm` installs the CPU build for it.
"""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from support import vllm_python

from starec_agents.agent import UserAgent
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.runs.population import Run, arun_population, run_population
from starec_agents.runs.reading import read_steps
from starec_agents.serving.serve import Server, start_server
from starec_agents.tasks import rank_messages, ranking_schema, start_memory
from starec_env.errors import EndpointError, RunError
from starec_env.replay.stream import Stream
from starec_env.types import Dataset

pytestmark = pytest.mark.vllm
POPULATION: dict[str, Any] = {"users": 4, "turns": 2, "n_candidates": 10, "progress": False}


def start(port: int = 0) -> Server:
    return start_server("smollm2", engine="vllm", python=vllm_python(), port=port, context=4096, parallel=8)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    """The server, last; a test that ends it appends the next."""
    running = [start()]
    yield running
    running[-1].stop()


@pytest.fixture
def endpoint(servers: list[Server]) -> Endpoint:
    # Patient enough to outlast a restart of the server.
    return servers[-1].endpoint.model_copy(update={"max_tokens": 120, "max_retries": 8})


def metric(endpoint: Endpoint, name: str) -> float:
    """The sum of a Prometheus counter over its labels."""
    with urlopen(endpoint.base_url.removesuffix("/v1") + "/metrics") as answer:
        found = re.findall(rf"^vllm:{name}{{.*}} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, f"vLLM shows no metric {name}"
    return sum(map(float, found))


def check_complete(run: Run) -> None:
    """Every user has every turn once, in order."""
    steps = list(read_steps(run.out))
    turns: dict[object, list[int]] = {}
    for step in steps:
        turns.setdefault(step.user_id, []).append(step.turn)
    assert run.metrics["failures"] == 0
    assert len(steps) == POPULATION["users"] * POPULATION["turns"] and len(turns) == POPULATION["users"]
    assert all(later == earlier + 1 for earlier, later in turns.values())
    assert all([call.kind for call in step.calls] == ["rank", "reflect"] for step in steps)


async def test_token_ids_and_logprobs_come_with_each_token(endpoint: Endpoint, tiny_dataset: Dataset) -> None:
    query = first_query(tiny_dataset)
    async with OpenAIChat(endpoint) as llm:
        answer = await llm.complete(rank_messages(query, start_memory(query)), logprobs=True, max_tokens=40)
        again = await llm.complete(rank_messages(query, start_memory(query)), logprobs=True, max_tokens=40)
    assert answer.token_ids and answer.prompt_token_ids and answer.logprobs
    assert len(answer.token_ids) == len(answer.logprobs) == answer.usage.completion_tokens
    assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    assert all(math.isfinite(logprob) and logprob <= 0 for logprob in answer.logprobs)
    assert again.prompt_token_ids == answer.prompt_token_ids


async def test_a_schema_is_kept_without_white_space(endpoint: Endpoint, tiny_dataset: Dataset) -> None:
    query = first_query(tiny_dataset)
    messages = rank_messages(query, start_memory(query), "scores")
    async with OpenAIChat(endpoint) as llm:
        answer = await llm.complete(messages, schema=ranking_schema(10), temperature=1.0, seed=1)
    scores = json.loads(answer.text)
    assert list(scores) == list("ABCDEFGHIJ") and all(0 <= score <= 99 for score in scores.values())
    assert not re.search(r"\s", answer.text)


async def test_a_seed_makes_a_sampled_answer_repeatable(endpoint: Endpoint) -> None:
    prompt = [{"role": "user", "content": "Name a film."}]
    async with OpenAIChat(endpoint) as llm:
        texts = [(await llm.complete(prompt, temperature=1.5, seed=s, max_tokens=20)).text for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


async def test_a_prompt_that_is_too_long_and_a_wrong_model_fail_with_the_reason(endpoint: Endpoint) -> None:
    async with OpenAIChat(endpoint) as llm:
        with pytest.raises(EndpointError, match="4096") as caught:
            await llm.complete([{"role": "user", "content": "film " * 6000}])
    assert caught.value.kind == "bad_request"
    async with OpenAIChat(endpoint.model_copy(update={"model": "smollm"})) as llm:
        with pytest.raises(EndpointError, match="smollm2") as caught:
            await llm.check()
    assert caught.value.kind == "not_found"


def test_a_population_writes_the_papers_format(endpoint: Endpoint, tiny_dataset: Dataset, tmp_path: Path) -> None:
    agent = UserAgent.factory(OpenAIChat(endpoint), logprobs=True)
    run = run_population(tiny_dataset, agent, out=tmp_path / "run", concurrency=4, **POPULATION)
    check_complete(run)
    calls = [call for step in read_steps(run.out) for call in step.calls]
    assert all(call.token_ids and call.logprobs and len(call.token_ids) == len(call.logprobs) for call in calls)
    assert run.metrics["completion_tokens"] == sum(len(call.token_ids or ()) for call in calls)


def test_a_structured_population_is_always_valid_and_hits_the_prefix_cache(
    endpoint: Endpoint, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    before = metric(endpoint, "prefix_cache_hits_total")
    agent = UserAgent.factory(OpenAIChat(endpoint), answer_format="scores")
    run = run_population(tiny_dataset, agent, out=tmp_path / "run", concurrency=4, **POPULATION)
    check_complete(run)
    assert run.metrics["valid_share"] == 1.0
    hits = metric(endpoint, "prefix_cache_hits_total") - before
    cached = sum(call.usage.cached_tokens for step in read_steps(run.out) for call in step.calls)
    assert hits == cached > 0
    print(f"prefix cache: {hits:.0f} of {run.metrics['prompt_tokens']} prompt tokens")


async def test_a_run_outlasts_its_servers_death_and_return(
    servers: list[Server], endpoint: Endpoint, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    agent = UserAgent.factory(OpenAIChat(endpoint), answer_format="compact")
    options: dict[str, Any] = {"out": tmp_path / "run", "concurrency": 2, **POPULATION}
    running = asyncio.create_task(arun_population(tiny_dataset, agent, **options))
    log = tmp_path / "run" / "steps.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        assert not running.done(), await running
        await asyncio.sleep(0.05)
    servers[-1].kill()
    servers[-1].log.unlink()
    before = log.read_bytes()[: log.read_bytes().rindex(b"\n")].split(b"\n")
    assert len(before) < POPULATION["users"] * POPULATION["turns"]
    servers.append(await asyncio.to_thread(start, int(endpoint.base_url.split(":")[2].removesuffix("/v1"))))
    try:
        run = await running
    except RunError:
        run = None
    if run is None or run.metrics["failures"]:
        run = await arun_population(tiny_dataset, agent, resume=True, **options)
    check_complete(run)
    assert set(before) <= set(log.read_bytes().split(b"\n"))


def first_query(dataset: Dataset) -> Any:
    """A turn with 10 candidates."""
    stream = Stream(dataset, n_candidates=10)
    return stream.turns(int(stream.users[0]))[0].query

"""The policy in this process: batched answers equal single ones, and a population can ask it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from support_training import AGENT

from starec_agents.agent import UserAgent
from starec_agents.runs.population import run_population
from starec_env.errors import EndpointError, TrainingError
from starec_env.types import Dataset, Id
from starec_training.checkpoints import load_policy
from starec_training.dataset import Rows
from starec_training.generation import LocalChat, generate, ranker


@pytest.fixture(scope="module")
def loaded(student: Path) -> tuple[Any, Any]:
    return load_policy(student)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_of_a_batch_are_those_of_single_prompts(
    loaded: tuple[Any, Any], taught: Rows, temperature: float
) -> None:
    prompts = [row.prompt for row in taught.rows[:9]]
    how = {"max_tokens": 24, "temperature": temperature}
    before = torch.get_rng_state()
    together = generate(*loaded, prompts, batch_size=4, **how)
    alone = [generate(*loaded, [prompt], **how)[0] for prompt in prompts]
    assert torch.equal(before, torch.get_rng_state())
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in together}) > 1
    for answer in together:
        assert answer.usage.completion_tokens == len(answer.token_ids or ()) <= 24
        assert (answer.finish_reason == "length") == (answer.token_ids[-1] != loaded[1].eos_token_id)
    assert ranker(lambda: loaded[0], loaded[1], **how)(prompts) == [
        "" if answer.cut_off else answer.text for answer in alone
    ]


def test_samples_follow_their_seeds_and_the_models_probabilities(loaded: tuple[Any, Any], taught: Rows) -> None:
    model, tokenizer = loaded
    prompt = taught.rows[0].prompt
    one, two = (
        [a.token_ids for a in generate(*loaded, [prompt] * 800, max_tokens=1, temperature=2.0, seeds=range(n, n + 800))]
        for n in (0, 1)
    )
    assert one[1:] == two[:-1]
    ids = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        p = (model.eval()(torch.tensor([ids])).logits[0, -1] / 2).softmax(-1)
    token = int(p.argmax())
    share, wanted = sum(drawn == (token,) for drawn in one) / 800, float(p[token])
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / 800) ** 0.5
    assert 0 < share < 1


def test_requests_that_wait_together_share_a_batch(loaded: tuple[Any, Any], taught: Rows) -> None:
    chat = LocalChat(*loaded, batch_size=8, max_tokens=8)
    prompts = [row.prompt for row in taught.rows[:12]]

    async def ask() -> list[str]:
        asked = [chat.complete(prompt, schema={}, max_tokens=6 if n < 10 else 7) for n, prompt in enumerate(prompts)]
        return [answer.text for answer in await asyncio.gather(*asked)]

    texts = asyncio.run(ask())
    assert chat.batches == 3
    assert texts[:10] == [answer.text for answer in generate(*loaded, prompts[:10], max_tokens=6)]


def test_the_same_request_again_draws_anew_and_in_the_same_order_after_a_restart(
    loaded: tuple[Any, Any], taught: Rows
) -> None:
    async def ask(seed: int) -> list[str]:
        chat = LocalChat(*loaded, max_tokens=8, temperature=1.0, seed=seed)
        return [(await chat.complete(taught.rows[0].prompt)).text for _ in range(4)]

    one, again, other = (asyncio.run(ask(seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len(set(one)) > 1


def test_a_population_asks_the_policy_through_the_graph(
    loaded: tuple[Any, Any], films: Dataset, train_users: list[Id], tmp_path: Path
) -> None:
    agent = UserAgent.factory(LocalChat(*loaded, model="tiny", max_tokens=24), **AGENT)
    run = run_population(films, agent, out=tmp_path, users=train_users[:4], turns=2, n_candidates=4, progress=False)
    assert run.metrics["failures"] == 0
    assert run.metrics["completion_tokens"] > 0


def test_a_model_that_fails_is_an_endpoint_that_fails(loaded: tuple[Any, Any]) -> None:
    class Broken:
        training, device = False, torch.device("cpu")

        def eval(self) -> None: ...  # noqa: A003
        def train(self, mode: bool) -> None: ...

    with pytest.raises(EndpointError, match="local model failed"):
        asyncio.run(LocalChat(Broken(), loaded[1]).complete([{"role": "user", "content": "x"}]))


def test_a_policy_that_cannot_be_loaded_or_has_no_template_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="can't load"):
        load_policy(tmp_path)
    for file in tiny.iterdir():
        if "chat_template" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(TrainingError, match="no chat template"):
        load_policy(tmp_path)
    with pytest.raises(TrainingError, match="no chat template"):
        LocalChat(None, object())

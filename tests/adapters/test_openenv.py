"""The OpenEnv adapter with OpenEnv's own server and client: `make test-adapters`."""

import socket
import threading
import time

import pytest
from adapters.common import BOTH, directly

from starec_agents import scripted_user
from starec_agents.adapters import Episodes

pytestmark = pytest.mark.adapters
pytest.importorskip("openenv", reason="make test-adapters installs OpenEnv")


@pytest.fixture(scope="module", params=BOTH, ids="-".join)
def served(request):
    import uvicorn

    from starec_agents.adapters.openenv_server import app

    episodes = Episodes(env=request.param[0], agent=request.param[1], turns=2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app(episodes), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", episodes
        server.should_exit = True
        thread.join(10)


async def played(client, **options):
    """An episode's prompts and rewards, answered by script; and the tasks."""
    say = scripted_user()
    result, prompts, rewards, tasks = await client.reset(**options), [], [], []
    while not result.done:
        prompts.append(result.observation["messages"])
        tasks.append(result.observation["task"])
        result = await client.step({"text": say(result.observation["messages"], {})})
        rewards.append(result.reward)
    return prompts, rewards, tasks


async def test_a_client_answers_an_episode_over_the_wire(served):
    from openenv.core.generic_client import GenericEnvClient

    url, episodes = served
    async with GenericEnvClient(base_url=url) as client:
        prompts, rewards, tasks = await played(client, user_id=42)
        state = await client.state()
    expected = directly(episodes, 42)
    assert prompts == expected.prompts
    assert sum(rewards) == sum(expected.rewards)
    # A ranking earns its reward at once, and the reflection on it nothing.
    assert not any(reward for task, reward in zip(tasks, rewards, strict=True) if task == "reflect")
    assert state["step_count"] == len(tasks)


async def test_a_seed_names_the_user(served):
    from openenv.core.generic_client import GenericEnvClient

    url, _ = served
    async with GenericEnvClient(base_url=url) as client:
        first, again, other = [(await client.reset(seed=seed)).observation["messages"] for seed in (3, 3, 4)]
    assert first == again != other

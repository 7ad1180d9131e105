"""What the adapters' tests share: a real server on loopback that answers by script, and the record it leads to."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fake_endpoint import FakeEndpoint

from starec_agents import ScriptedChat, scripted_user
from starec_agents.adapters import Episodes

TASKS = {"starec": ["rank", "reflect"], "planner": ["planner", "rank", "critic", "rank", "reflect"]}
"""What each graph asks a turn; a scripted critic never accepts."""


def scripted_server() -> FakeEndpoint:
    """An OpenAI-compatible server that answers every prompt as the scripted user does."""
    say = scripted_user()
    return FakeEndpoint(lambda body: say(body["messages"], {}))


def directly(episodes: Episodes, user_id: int):
    """The steps that the scripted user's answers lead to without any adapter."""
    playing = episodes.episode(user_id).play(ScriptedChat(scripted_user()))
    with ThreadPoolExecutor(1) as thread:  # where a test's own event loop isn't in the way
        return thread.submit(asyncio.run, playing).result()

"""What the adapters' tests share: a real server on loopback that answers by script, and the record it leads to."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fake_endpoint import FakeEndpoint

from starec_agents import ScriptedChat, scripted_user
from starec_agents.adapters import Episodes

BOTH = [("rank", "starec"), ("rank", "planner"), ("recommend", "starec"), ("recommend", "planner")]
"""Environments and graphs."""
MISSING = {"rank": -1.0, "recommend": 0.0}
"""What counts for a reward that wasn't earned."""


def scripted_server() -> FakeEndpoint:
    """An OpenAI-compatible server that answers every prompt as the scripted user does."""
    say = scripted_user()
    return FakeEndpoint(lambda body: say(body["messages"], {}))


@dataclass
class Played:
    """An episode without any adapter: its rewards, and the prompts of its requests."""

    rewards: list[float]
    prompts: list[list[dict[str, str]]]

    def mean(self, length: int, missing: float) -> float:
        """The mean reward, where some weren't earned."""
        return (sum(self.rewards) + missing * (length - len(self.rewards))) / length


def directly(episodes: Episodes, user_id: int) -> Played:
    """What the scripted user's answers lead to."""
    prompts, say = [], scripted_user()
    llm = ScriptedChat(lambda messages, sampling: prompts.append(list(map(dict, messages))) or say(messages, {}))
    episode = episodes.episode(user_id)
    with ThreadPoolExecutor(1) as thread:  # where a test's own event loop isn't in the way
        thread.submit(asyncio.run, episode.play(llm)).result()
    return Played(episode.rewards, prompts)

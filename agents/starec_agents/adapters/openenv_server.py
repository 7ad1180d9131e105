"""Users as an OpenEnv server: prompts go out, answers come in, the agent's graph runs here.

    uvicorn --factory starec_agents.adapters.openenv_server:app

`app(Episodes(agent="planner"))` in a module of yours has other options.
"""

from functools import partial
from typing import Any

from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

from starec_agents.adapters import Episodes, Player
from starec_agents.outside import Request
from starec_env.types import Id


class Answer(Action):
    """The model's answer to the prompt observed last."""

    text: str


class Prompt(Observation):
    """What the graph asks next; nothing when `done`. `reward` is what the answer earned: 0 unless it was a ranking."""

    task: str = ""
    messages: list[dict[str, str]] = []


class UserEnvironment(Environment[Answer, Prompt, State]):
    """A user's episode."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    state = State()

    def __init__(self, episodes: Episodes | None = None) -> None:
        super().__init__()
        self.player = Player(episodes or Episodes())

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, user_id: Id | None = None, **_: Any
    ) -> Prompt:
        """Begin with that user, or with one drawn by the seed."""
        self.state = State(episode_id=episode_id)
        return _observe(self.player.reset(user_id, seed), 0.0)

    def step(self, action: Answer, timeout_s: float | None = None, **_: Any) -> Prompt:
        """Answer."""
        self.state.step_count += 1
        return _observe(*self.player.answer(action.text))


def _observe(request: Request | None, reward: float) -> Prompt:
    asked = {"task": request.task, "messages": list(map(dict, request.messages))} if request else {}
    return Prompt(reward=reward, done=request is None, **asked)


def app(episodes: Episodes | None = None) -> Any:
    """The server's FastAPI application."""
    return create_app(partial(UserEnvironment, episodes), Answer, Prompt, "starec", max_concurrent_envs=64)

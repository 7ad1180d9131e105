"""Users' turns as an OpenEnv server: prompts go out, answers come in, the agent's graph runs here.

    uvicorn --factory starec_agents.adapters.openenv_server:app

`app(Episodes(agent="planner"))` in a module of yours has other options.
"""

from typing import Any

from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

from starec_agents.adapters import Episodes
from starec_agents.outside import Episode, Request
from starec_env.errors import InvalidOption
from starec_env.types import Id


class Answer(Action):
    """The model's answer to the prompt observed last."""

    text: str


class Prompt(Observation):
    """What the graph asks next; nothing when `done`. `reward` is what the answer earned: 0 unless it was a ranking."""

    task: str = ""
    messages: list[dict[str, str]] = []


class UserEnvironment(Environment[Answer, Prompt, State]):
    """A user's turns an episode."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    state = State()

    def __init__(self, episodes: Episodes) -> None:
        super().__init__()
        self.episodes, self.state = episodes, State()
        self.episode: Episode | None = None

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, user_id: Id | None = None, **_: Any
    ) -> Prompt:
        """Begin with that user, or with one drawn by the seed."""
        self.close()
        self.episode = self.episodes.episode(self.episodes.one_of(seed) if user_id is None else user_id)
        self.state = State(episode_id=episode_id)
        return _observe(self.episode, self.episode.start(), 0)

    def step(self, action: Answer, timeout_s: float | None = None, **_: Any) -> Prompt:
        """Answer."""
        self.state.step_count += 1
        if self.episode is None:
            raise InvalidOption("there is no prompt to answer: reset first")
        judged = len(self.episode.rewards)
        return _observe(self.episode, self.episode.answer(action.text), judged)

    def close(self) -> None:
        """Give up the episode that goes on."""
        if self.episode is not None:
            self.episode.close()


def _observe(episode: Episode, request: Request | None, judged: int) -> Prompt:
    asked = {"task": request.task, "messages": list(map(dict, request.messages))} if request else {}
    return Prompt(reward=sum(episode.rewards[judged:]), done=request is None, **asked)


def app(episodes: Episodes | None = None, sessions: int = 64) -> Any:
    """The server's FastAPI application."""
    episodes = episodes or Episodes()
    return create_app(lambda: UserEnvironment(episodes), Answer, Prompt, "starec", max_concurrent_envs=sessions)

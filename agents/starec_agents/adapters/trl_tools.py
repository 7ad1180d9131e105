"""Users' turns for TRL's `environment_factory`: `GRPOTrainer(..., environment_factory=UserTools)`.

TRL makes one transcript of an episode, which only grows: each prompt of the graph is a tool's answer in it, and the
policy sees all of the earlier ones. So what is trained answers with the whole transcript before it, where the agent of
the paper has its rewritten memory alone; `starec train grpo` trains that, a row a prompt. The reward is one number for
the whole transcript.
"""

from typing import Any

from starec_agents.adapters import Episodes, Player
from starec_agents.outside import Request
from starec_env.types import Id

_END = "That was the last task."


class UserTools:
    """One user's episode; the columns of the data set's row are `reset`'s arguments, e.g. `user_id`."""

    episodes = Episodes()
    """Subclass with others to change what is asked."""

    def __init__(self) -> None:
        self._player = Player(self.episodes)

    def reset(self, user_id: Id | None = None, seed: int | None = None, **_: Any) -> str:
        """Begin with that user, or with one drawn by the seed."""
        return _text(self._player.reset(user_id, seed))

    def answer(self, text: str) -> str:
        """Hand in the answer to the current task.

        Args:
            text: The whole answer, in the form that the task asks for.

        Returns:
            The next task.
        """
        if self._player.episode is None or self._player.episode.ended:
            return _END
        return _text(self._player.answer(text)[0])

    def get_reward(self) -> float:
        """The episode's mean reward; a turn that was not ranked counts -1."""
        return -1.0 if self._player.episode is None else self._player.episode.mean_reward


def _text(request: Request | None) -> str:
    return _END if request is None else "\n\n".join(message["content"] for message in request.messages)

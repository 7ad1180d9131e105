"""One trial of an agent's graph before a run: a scripted model, and nothing that is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from starec_agents._executor import unheard
from starec_agents.agent import OWN_KEYS, UserAgent
from starec_agents.llm import Message, ScriptedChat, scripted_user
from starec_agents.tasks import Response, Visit
from starec_agents.tasks.wording import made_up_turn
from starec_env.errors import InvalidOption, UnknownName
from starec_env.types import Feedback, Query

_MOST_REQUESTS = 100

_log = logging.getLogger(__name__)


async def check_graph(agent: UserAgent, query: Query | None = None) -> None:
    """Try an agent's graph on one turn, with scripted answers in place of its models', and leave the agent as it is.

    What only real answers can decide is let pass: a node that can't read a scripted answer is no fault of the graph.

    Args:
        agent: The agent; its nodes are run for real, tools included.
        query: The turn to rank; None for one made up of a few films.

    Raises:
        InvalidOption: The graph ends without a ranking, or reads while ranking what only learning has.
        UnknownName: A node asks a model that the agent doesn't have.
    """
    query = query or made_up_turn().query
    trial, ranked = _scripted(agent), False
    try:
        with unheard():
            await trial.arank(query)
            ranked = True
            await trial.alearn(Feedback(item_id=query.candidates[0].id, rank=1, predicted_liked=True, liked=True))
        trial.own_state = trial.own_state
    except (InvalidOption, UnknownName):
        raise
    except Exception as error:
        if not ranked and isinstance(error, KeyError) and OWN_KEYS.intersection(error.args):
            raise InvalidOption(
                f"graph {agent.graph_name!r} reads {error} while ranking, when the state has none yet: give it a "
                "branch at START that leads to its learning nodes only where 'feedback' is in the state"
            ) from error
        _log.info("graph %r failed in its trial: %r", agent.graph_name, error)


async def answers_slates(agent: UserAgent) -> bool:
    """Whether an agent's graph answers a slate, and doesn't rank it, by one trial with scripted answers."""
    visit = Visit(levels=(1, 2, 3, 4, 5), counts=(1, 1, 1, 1, 1))
    try:
        with unheard():
            return isinstance(await _scripted(agent).arespond(made_up_turn().query, visit), Response)
    except (InvalidOption, UnknownName):
        raise
    except Exception as error:
        _log.info("graph %r failed in its trial: %r", agent.graph_name, error)
        return True


def _scripted(agent: UserAgent) -> UserAgent:
    """A copy of the agent whose models all answer by script, for a while."""
    answer = scripted_user()

    def reply(messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
        if chat.requests > _MOST_REQUESTS:
            raise RuntimeError(f"no end after {_MOST_REQUESTS} scripted answers")
        return answer(messages, sampling)

    chat, trial = ScriptedChat(reply), copy(agent)
    trial.context = replace(agent.context, llm=chat, models=dict.fromkeys(agent.models, chat))
    return trial

"""Users' turns as an inspect_ai task: `inspect eval starec_agents/rank -T agent=planner -T users=100 --model ...`.

The graph asks the model that inspect evaluates, so inspect's limits, cache, retries and log hold for each request.
Behind inspect's "openai" provider, a plain chat server needs `-M responses_api=false`.
"""

from collections.abc import Sequence
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import Score, mean, scorer, stderr
from inspect_ai.solver import solver

from starec_agents.adapters import Episodes
from starec_agents.llm.base import MAX_TEXT, Completion, Message, Usage, bounded

_ROLES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


class InspectChat:
    """The model that inspect evaluates, as an agent's chat model."""

    async def complete(
        self, messages: Sequence[Message], *, schema: Any = None, stop: Any = None, **sampling: Any
    ) -> Completion:
        """Answer a prompt; see ChatModel."""
        shape = ResponseSchema(name="answer", json_schema=schema) if schema else None
        config = GenerateConfig(response_schema=shape, stop_seqs=stop, **sampling)
        out = await get_model().generate(
            [_ROLES[one["role"]](content=one["content"]) for one in messages], config=config
        )
        parts = [] if isinstance(out.message.content, str) else out.message.content
        thoughts = "\n".join(part.reasoning for part in parts if part.type == "reasoning") or None
        used = (out.usage.input_tokens, out.usage.output_tokens) if out.usage else (0, 0)
        return Completion(
            **bounded(out.completion, thoughts, out.stop_reason, MAX_TEXT),
            usage=Usage(prompt_tokens=used[0], completion_tokens=used[1]),
            model=out.model,
        )


@solver
def user_agent(episodes: Episodes) -> Any:
    """The agent's graph, through one user's turns."""

    async def solve(state: Any, generate: Any) -> Any:
        episode = episodes.episode(state.metadata["user_id"])
        await episode.play(InspectChat())
        state.store.set("reward", episode.mean_reward)
        state.output.completion = str(episode.rewards)
        return state

    return solve


@scorer(metrics=[mean(), stderr()])
def reward() -> Any:
    """An episode's mean reward, with its standard error over users."""

    async def score(state: Any, target: Any) -> Any:
        return Score(value=state.store.get("reward"), answer=state.output.completion)

    return score


@task
def rank(**options: Any) -> Task:
    """Users' turns; the options are those of `Episodes`."""
    return _task(Episodes(**{"split": "test", **options}))


@task
def recommend(**options: Any) -> Task:
    """Visits to the agent as recommender; the options are those of `Episodes`."""
    return _task(Episodes(env="recommend", **options))


def _task(episodes: Episodes) -> Task:
    users = [Sample(input=f"User {user}", id=str(user), metadata={"user_id": user}) for user in episodes.user_ids]
    return Task(dataset=users, solver=user_agent(episodes), scorer=reward())

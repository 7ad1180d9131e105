"""Users as an inspect_ai task: `inspect eval starec_agents/users -T agent=planner -T users=100 --model ...`.

The graph asks the model that inspect evaluates, so inspect's limits, cache, retries and log hold for each request.
Behind inspect's "openai" provider, a plain chat server needs `-M responses_api=false`.
"""

from collections.abc import Sequence
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessage, ContentReasoning, GenerateConfig, ModelUsage, ResponseSchema, get_model
from inspect_ai.scorer import Score, mean, stderr
from inspect_ai.solver import solver
from pydantic import TypeAdapter

from starec_agents.adapters import Episodes
from starec_agents.llm.base import MAX_TEXT, Completion, Message, Usage, bounded

_PROMPT = TypeAdapter(list[ChatMessage])


class InspectChat:
    """The model that inspect evaluates, as an agent's chat model."""

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a prompt; see ChatModel."""
        schema, stop = sampling.pop("schema", None), sampling.pop("stop", None)
        shape = ResponseSchema(name="answer", json_schema=schema) if schema else None
        config = GenerateConfig(response_schema=shape, stop_seqs=stop, **sampling)
        out = await get_model().generate(_PROMPT.validate_python(messages), config=config)
        thoughts = [part.reasoning for part in out.message.content if isinstance(part, ContentReasoning)]
        answer = bounded(out.completion, "\n".join(thoughts), out.stop_reason, MAX_TEXT)
        used = out.usage or ModelUsage()
        tokens = Usage(prompt_tokens=used.input_tokens, completion_tokens=used.output_tokens)
        return Completion(**answer, usage=tokens, model=out.model)


@solver
def user_agent(episodes: Episodes) -> Any:
    """The agent's graph, through one user's episode; the score is its mean reward."""

    async def solve(state: Any, generate: Any) -> Any:
        episode = episodes.episode(state.metadata["user_id"])
        await episode.play(InspectChat())
        state.scores = {"reward": Score(value=episode.mean_reward, answer=str(episode.rewards))}
        return state

    return solve


@task
def users(**options: Any) -> Task:
    """A sample a user; the options are those of `Episodes`, and the split is "test" unless given."""
    episodes = Episodes(**{"split": "test", **options})
    samples = [Sample(input=f"User {user}", metadata={"user_id": user}, id=str(user)) for user in episodes.user_ids]
    return Task(dataset=samples, solver=user_agent(episodes), metrics=[mean(), stderr()])

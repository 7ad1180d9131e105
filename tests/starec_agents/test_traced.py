"""Spans of nodes and requests by LangChain's callbacks, which LangSmith, MLflow and OpenTelemetry listen to."""

import asyncio
from contextvars import Context, ContextVar
from functools import partial

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.tracers import context
from support import make_dataset

from starec_agents import (
    Endpoint,
    LangChainChat,
    OpenAIChat,
    ScriptedChat,
    UserAgent,
    check_graph,
    play_turns,
    scripted_user,
)
from starec_agents._trial import answers_slates  # noqa: PLC2701
from starec_agents.llm import Completion
from starec_agents.llm.base import Usage
from starec_agents.planner import planner
from starec_agents.runs.plan import plan_turns
from starec_env.errors import EndpointError
from starec_env.replay.stream import Stream

TURNS = Stream(make_dataset(), turns=1).turns(0)


class Spans(AsyncCallbackHandler):
    """Keeps what it hears of."""

    def __init__(self):
        self.nodes, self.asked, self.answered, self.failed = {}, [], [], []

    async def on_chain_start(self, serialized, inputs, *, run_id, name=None, **about):
        self.nodes[run_id] = name

    async def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, name=None, **about):
        self.asked.append((name, self.nodes[parent_run_id], messages[0], about))

    async def on_llm_end(self, response, *, run_id, **about):
        self.answered.append(response)

    async def on_llm_error(self, error, *, run_id, **about):
        self.failed.append(error)


@pytest.fixture
def listening(monkeypatch):
    """A handler that hears of everything, as tracers do that are switched on for a whole process."""
    monkeypatch.setattr(context, "_configure_hooks", [*context._configure_hooks])
    current = ContextVar("listening", default=None)
    context.register_configure_hook(current, inheritable=True)
    heard = Spans()
    current.set(heard)
    return heard


def answer(messages, sampling):
    usage = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2)
    return Completion(text=scripted_user()(messages, sampling), usage=usage, finish_reason="stop", model="m-1")


@pytest.mark.parametrize(("graph", "nodes"), [(None, ["fast_rank", "reflect"]), (planner, None)])
async def test_each_request_is_a_span_within_its_nodes(listening, graph, nodes):
    steps = []
    agent = partial(UserAgent, graph=graph, temperature=0.3)
    await play_turns(TURNS, agent, on_step=steps.append).play(ScriptedChat(answer))
    calls = steps[0].calls
    assert [name for name, *_ in listening.asked] == [call.kind for call in calls]
    if nodes:
        assert [node for _, node, *_ in listening.asked] == nodes
    for (_, _, messages, about), call in zip(listening.asked, calls, strict=True):
        assert [message.content for message in messages] == [message["content"] for message in call.messages]
        assert about["invocation_params"]["temperature"] == about["metadata"]["ls_temperature"] == 0.3
    for response, call in zip(listening.answered, calls, strict=True):
        ((generation,),) = response.generations
        assert generation.text == call.completion
        used = generation.message.usage_metadata
        assert (used["input_tokens"], used["output_tokens"], used["input_token_details"]["cache_read"]) == (7, 3, 2)
        assert response.llm_output["model_name"] == "m-1"


async def test_the_record_is_the_same_with_and_without_a_listener(listening):
    async def steps_of():
        steps = []
        await play_turns(TURNS, on_step=steps.append).play(ScriptedChat(answer))
        return steps

    heard = await steps_of()
    assert len(listening.asked) == 2
    assert await asyncio.create_task(steps_of(), context=Context()) == heard
    assert len(listening.asked) == 2


async def test_a_trial_by_script_is_in_no_trace(listening):
    agent = UserAgent(ScriptedChat(answer))
    await check_graph(agent)
    assert await answers_slates(agent)
    plan = await plan_turns(UserAgent.factory, Stream(make_dataset(), turns=1), [0], 1, True)
    assert plan.calls == 2 and not listening.nodes
    assert agent.executor == "langgraph"


async def test_a_failed_request_is_a_failed_span(listening):
    def fails(messages, sampling):
        raise EndpointError("no", "server")

    with pytest.raises(EndpointError, match="no"):
        await play_turns(TURNS).play(ScriptedChat(fails))
    assert [str(error) for error in listening.failed] == ["no"] and not listening.answered


async def test_a_langchain_model_is_traced_once(listening):
    with pytest.raises(EndpointError):  # it has no answers left to reflect with
        await play_turns(TURNS).play(LangChainChat(FakeListChatModel(responses=[])))
    assert len(listening.asked) == 1


async def test_nothing_is_traced_where_nobody_listens():
    steps = []
    agent = UserAgent(ScriptedChat(answer))
    await play_turns(TURNS, lambda llm: agent, on_step=steps.append).play(ScriptedChat(answer))
    assert agent.executor == "direct" and len(steps) == 1


def test_what_a_trace_may_show_prints_as_itself_and_without_keys(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    endpoint = Endpoint(base_url="http://me:hidden@localhost:8000/v1?key=x", model="m", headers={"k": "env:MY_KEY"})
    agent = UserAgent(OpenAIChat(endpoint))
    assert repr(agent) == "UserAgent('reflect-always', OpenAIChat('m' at http://localhost:8000/v1))"
    shown = [agent, ScriptedChat("x"), LangChainChat(FakeListChatModel(responses=[])), Stream(make_dataset()), TURNS[0]]
    assert not any(" object at 0x" in repr(thing) or "secret" in repr(thing) for thing in shown)

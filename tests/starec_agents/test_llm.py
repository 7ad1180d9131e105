import asyncio
import itertools
import traceback
from collections.abc import Iterator
from typing import Any, TypedDict

import openai
import pytest
from fake_endpoint import FakeEndpoint
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph
from pydantic import SecretStr

from starec_agents.llm import Completion, LangChainChat, ScriptedChat, kind_of_status
from starec_agents.llm.base import Usage
from starec_env.errors import EndpointError

HI = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi there, you"}]


async def test_a_scripted_text_is_always_the_same_and_counted_in_words() -> None:
    llm = ScriptedChat("Good day to you.")
    answers = [await llm.complete(HI), await llm.complete(HI, temperature=1.0)]
    assert answers[0] == answers[1]
    assert answers[0].text == "Good day to you."
    assert answers[0].usage == Usage(prompt_tokens=5, completion_tokens=4)
    assert llm.requests == 2


async def test_a_scripted_sequence_is_said_in_turn_and_then_again() -> None:
    llm = ScriptedChat(["a", "b"])
    assert [(await llm.complete(HI)).text for _ in range(5)] == ["a", "b", "a", "b", "a"]


async def test_a_scripted_sequence_keeps_the_order_of_the_calls_whatever_the_latency() -> None:
    llm = ScriptedChat("a b c d e f".split(), latency=0.001)
    answers = await asyncio.gather(*(llm.complete(HI) for _ in range(6)))
    assert [answer.text for answer in answers] == "a b c d e f".split()
    assert answers[0].latency == 0.001


async def test_a_scripted_function_sees_the_prompt_and_the_sampling() -> None:
    whole = Completion(text="cut", finish_reason="length", usage=Usage(prompt_tokens=9))

    def reply(messages: Any, sampling: Any) -> str | Completion:
        if sampling.get("seed") == 1:
            return whole
        if sampling.get("seed") == 2:
            raise EndpointError("no", "timeout")
        return str(messages[-1]["content"])

    llm = ScriptedChat(reply)
    assert (await llm.complete(HI)).text == "Hi there, you"
    assert await llm.complete(HI, seed=1) is whole
    with pytest.raises(EndpointError):
        await llm.complete(HI, seed=2)


def langchain(*messages: AIMessage) -> LangChainChat:
    return LangChainChat(GenericFakeChatModel(messages=itertools.cycle(messages)))


async def test_a_langchain_answer_keeps_what_its_model_says_about_it() -> None:
    used = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9, "input_token_details": {"cache_read": 4}}
    about = {"finish_reason": "stop", "model_name": "fake-1", "logprobs": {"content": [{"logprob": -0.5}]}}
    answer = await langchain(AIMessage("1. Alien", usage_metadata=used, response_metadata=about)).complete(HI)  # type: ignore[arg-type]
    assert (answer.text, answer.finish_reason, answer.model) == ("1. Alien", "stop", "fake-1")
    assert answer.usage == Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=4)
    assert answer.logprobs == (-0.5,)
    assert answer.latency > 0


async def test_a_langchain_answer_in_blocks_is_told_apart_from_its_thoughts() -> None:
    blocks: list[str | dict[str, Any]] = [
        {"type": "reasoning", "reasoning": "Hm."},
        {"type": "text", "text": "3 1"},
        {"type": "text", "text": " 2"},
    ]
    answer = await langchain(AIMessage(blocks)).complete(HI)
    assert (answer.text, answer.reasoning) == ("3 1 2", "Hm.")
    older = await langchain(AIMessage("3", additional_kwargs={"reasoning_content": "Hm."})).complete(HI)
    assert (older.text, older.reasoning) == ("3", "Hm.")


async def test_a_bare_langchain_answer_is_an_answer() -> None:
    answer = await langchain(AIMessage("")).complete(HI)
    assert (answer.text, answer.reasoning, answer.finish_reason, answer.usage) == ("", None, None, Usage())


async def test_sampling_reaches_a_langchain_model_but_for_what_has_no_common_name() -> None:
    seen: dict[str, Any] = {}

    class Listening(GenericFakeChatModel):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            seen.update(kwargs, stop=stop, roles=[message.type for message in messages])
            return super()._generate(messages, stop, run_manager)

    llm = LangChainChat(Listening(messages=itertools.cycle([AIMessage("a")])))
    await llm.complete(HI, temperature=0.5, max_tokens=9, stop=["\n"], schema={}, logprobs=True)
    assert seen == {"temperature": 0.5, "max_tokens": 9, "stop": ["\n"], "roles": ["system", "human"]}


async def test_langgraph_cannot_make_a_langchain_model_stream() -> None:
    class State(TypedDict):
        usage: Usage

    used = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    model = GenericFakeChatModel(messages=itertools.cycle([AIMessage("Hello to you", usage_metadata=used)]))  # type: ignore[arg-type]
    llm = LangChainChat(model)

    async def node(state: State) -> State:
        return {"usage": (await llm.complete(HI)).usage}

    graph = StateGraph(State)
    graph.add_node("ask", node)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    parts = [part async for part in graph.compile().astream({"usage": Usage()}, stream_mode=["messages", "values"])]
    assert parts[-1][1]["usage"] == Usage(prompt_tokens=7, completion_tokens=2)  # type: ignore[index]
    assert model.disable_streaming is False


def raising(error: Exception) -> Iterator[AIMessage]:
    raise error
    yield


class ReadTimeout(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ReadTimeout("late"), "timeout"),
        (TimeoutError("late"), "timeout"),
        (ConnectionResetError("cut"), "connection"),
        (ValueError("unknown field"), "bad_request"),
        (RuntimeError("it broke"), "server"),
    ],
)
async def test_what_a_langchain_model_raises_becomes_an_endpoint_error(error: Exception, kind: str) -> None:
    llm = LangChainChat(GenericFakeChatModel(messages=raising(error)))
    with pytest.raises(EndpointError, match=f"GenericFakeChatModel failed: {type(error).__name__}") as caught:
        await llm.complete(HI)
    assert caught.value.kind == kind
    assert isinstance(caught.value.__cause__, type(error))


@pytest.mark.parametrize("fault", ["429", "401", "404", "500", "400"])
async def test_a_providers_error_is_known_by_its_status(fault: str) -> None:
    with FakeEndpoint(faults=[fault]) as server:
        client = openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)
        with pytest.raises(openai.APIStatusError) as theirs:
            await client.chat.completions.create(model="fake", messages=[])
        await client.close()
    llm = LangChainChat(GenericFakeChatModel(messages=raising(theirs.value)))
    with pytest.raises(EndpointError) as caught:
        await llm.complete(HI)
    assert caught.value.kind == kind_of_status(int(fault))


class Keyed(GenericFakeChatModel):
    api_key: SecretStr = SecretStr("sk-very-secret-0123456789")


@pytest.mark.parametrize("bound", [False, True])
async def test_a_langchain_models_key_is_in_no_error_and_no_answer(
    bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_API_KEY", "another-secret-0123")
    text = f"{'p' * 470} sk-very-secret-0123456789 another-secret-0123"
    broken: Any = Keyed(messages=raising(RuntimeError(text)))
    with pytest.raises(EndpointError, match="Keyed failed: RuntimeError") as caught:
        await LangChainChat(broken.bind(top_k=1) if bound else broken).complete(HI)
    shown = "".join(traceback.format_exception(caught.value))
    assert "sk-" not in str(caught.value) and "very-secret" not in shown and "another-secret" not in shown
    echoing: Any = Keyed(messages=itertools.cycle([AIMessage("You have sk-very-secret-0123456789.")]))
    assert (await LangChainChat(echoing.bind(top_k=1) if bound else echoing).complete(HI)).text == "You have ***."


async def test_a_langchain_model_with_bound_arguments_keeps_them_and_does_not_stream() -> None:
    seen: dict[str, Any] = {}

    class Listening(GenericFakeChatModel):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            seen.update(kwargs, streams=not self.disable_streaming)
            return super()._generate(messages, stop, run_manager)

    model = Listening(messages=itertools.cycle([AIMessage("a")]))
    await LangChainChat(model.bind(logprobs=True).bind(top_k=1)).complete(HI, temperature=0.5)
    assert seen == {"logprobs": True, "top_k": 1, "temperature": 0.5, "streams": False}
    assert model.disable_streaming is False


async def test_a_langchain_answer_holds_nothing_that_cannot_be() -> None:
    used = {"input_tokens": 2**63, "output_tokens": 2, "total_tokens": 9, "input_token_details": {"cache_read": -4}}
    about = {"stop_reason": "max_tokens", "logprobs": {"content": [{"logprob": float("-inf")}]}}
    message = AIMessage("x" * 10_000, usage_metadata=used, response_metadata=about)  # type: ignore[arg-type]
    answer = await langchain(message).complete(HI, max_tokens=10)
    assert (answer.usage, answer.logprobs, answer.cut_off) == (Usage(completion_tokens=2), None, True)
    assert len(answer.text) == 16 * 10 + 4096


async def test_cancelling_a_langchain_call_passes_through() -> None:
    class Slow(GenericFakeChatModel):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(30)

    call = asyncio.create_task(LangChainChat(Slow(messages=iter([]))).complete(HI))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, "bad_request"),
        (400, "bad_request"),
        (408, "timeout"),
        (413, "bad_request"),
        (502, "server"),
        (529, "server"),
    ],
)
def test_a_status_stands_for_a_kind(status: int, kind: str) -> None:
    assert kind_of_status(status) == kind

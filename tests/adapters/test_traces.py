"""Spans of nodes and requests in OpenTelemetry and MLflow themselves: `make test-adapters`."""

import asyncio
import json

import pytest
from support import make_dataset

from starec_agents import ScriptedChat, UserAgent, play_turns, scripted_user
from starec_env.replay.stream import Stream

pytestmark = pytest.mark.adapters
pytest.importorskip("opentelemetry.sdk", reason="make test-adapters installs OpenTelemetry and MLflow")
TURNS = Stream(make_dataset(), turns=1).turns(0)


def calls_of_a_turn():
    steps = []
    asyncio.run(play_turns(TURNS, UserAgent, on_step=steps.append).play(ScriptedChat(scripted_user())))
    return steps[0].calls


@pytest.fixture
def exported():
    """A tracer provider, and what it exported."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def spans_by(instrumentor, exported):
    """The calls of a turn, and the spans of it that the instrumentor made, in the order of their ends."""
    provider, exporter = exported
    instrumentor.instrument(tracer_provider=provider)
    try:
        return calls_of_a_turn(), exporter.get_finished_spans()
    finally:
        instrumentor.uninstrument()


def test_openinference_shows_nodes_prompts_answers_and_tokens(exported):
    from openinference.instrumentation.langchain import LangChainInstrumentor

    calls, ended = spans_by(LangChainInstrumentor(), exported)
    spans = {span.name: span for span in ended}
    assert {"reflect-always", "fast_rank", "compare", "update_memory"} <= spans.keys()
    (call,) = [call for call in calls if call.kind == "rank"]
    span = spans["rank"]
    assert span.parent.span_id == spans["fast_rank"].context.span_id
    assert span.attributes["openinference.span.kind"] == "LLM"
    assert span.attributes["llm.input_messages.1.message.content"] == call.messages[1]["content"]
    assert span.attributes["llm.output_messages.0.message.content"] == call.completion
    assert span.attributes["llm.token_count.prompt"] == call.usage.prompt_tokens
    assert span.attributes["llm.token_count.completion"] == call.usage.completion_tokens
    assert not any(" object at 0x" in str(value) for one in spans.values() for value in one.attributes.values())


def test_gen_ai_conventions_are_kept(exported):
    from opentelemetry.instrumentation.langchain import LangchainInstrumentor

    calls, ended = spans_by(LangchainInstrumentor(), exported)
    asked = [span.attributes for span in ended if span.attributes.get("gen_ai.operation.name") == "chat"]
    assert len(asked) == len(calls) == 2
    for told, call in zip(asked, calls, strict=True):
        assert told["gen_ai.usage.input_tokens"] == call.usage.prompt_tokens
        assert told["gen_ai.usage.output_tokens"] == call.usage.completion_tokens
        assert told["gen_ai.request.model"] == "ScriptedChat" and told["gen_ai.response.model"] == "scripted"
        assert json.loads(told["gen_ai.input.messages"])[0]["parts"][0]["content"] == call.messages[1]["content"]
        assert json.loads(told["gen_ai.output.messages"])[0]["parts"][0]["content"] == call.completion


def test_mlflow_autolog_shows_a_chat_model_span_within_its_node(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts in the current folder
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.langchain.autolog()
    try:
        calls = calls_of_a_turn()
        mlflow.flush_trace_async_logging()
        traces = mlflow.search_traces(return_type="list")
    finally:
        mlflow.langchain.autolog(disable=True)
    spans = {span.name: span for trace in traces for span in trace.data.spans}
    span = spans["rank"]
    assert span.span_type == "CHAT_MODEL" and span.parent_id == spans["fast_rank"].span_id
    assert calls[0].messages[1]["content"] in json.dumps(span.inputs, ensure_ascii=False).replace("\\n", "\n")
    assert calls[0].completion in json.dumps(span.outputs, ensure_ascii=False).replace("\\n", "\n")
    used = span.attributes["mlflow.chat.tokenUsage"]
    assert (used["input_tokens"], used["output_tokens"]) == (
        calls[0].usage.prompt_tokens,
        calls[0].usage.completion_tokens,
    )
    assert not any(" object at 0x" in str(one.inputs) + str(one.outputs) for one in spans.values())

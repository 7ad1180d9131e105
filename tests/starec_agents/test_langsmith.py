"""LangSmith's own client, sending to a server on loopback that takes in runs as the service does."""

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fake_endpoint import FakeEndpoint

from starec_agents import read_steps, scripted_user

KEY = "lsv2_pt_a_key_that_nobody_may_see"


class Ingest(ThreadingHTTPServer):
    """Takes runs, as multipart or in batches.

    Attributes:
        runs: What was sent of each run, by its id.
        requests: Method, path and key of each request.
    """

    def __init__(self, multipart):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.multipart, self.runs, self.requests = multipart, defaultdict(dict), []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def take(self, body, content_type):
        """Merge what a request says of its runs: it creates them ("post") or completes them ("patch")."""
        if not content_type.startswith("multipart/"):
            for run in [run for kind in ("post", "patch") for run in json.loads(body).get(kind, [])]:
                self.runs[run["id"]].update({key: value for key, value in run.items() if value is not None})
            return
        for part in message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body).get_payload():
            _, run, *field = part.get_param("name", header="content-disposition").split(".")
            value = json.loads(part.get_payload(decode=True))
            self.runs[run].update({field[0]: value} if field else {k: v for k, v in value.items() if v is not None})


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        threads = {"scale_up_qsize_trigger": 1000, "scale_up_nthreads_limit": 16, "scale_down_nempty_trigger": 4}
        sizes = {"size_limit": 100, "size_limit_bytes": 20_000_000}
        self._answer({"batch_ingest_config": {"use_multipart_endpoint": self.server.multipart, **threads, **sizes}})

    def do_POST(self):
        self.server.take(self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Type"])
        self._answer({})

    def _answer(self, body):
        self.server.requests.append((self.command, self.path, self.headers["x-api-key"]))
        self.send_response(200 if self.command == "GET" else 202)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def ingest(request):
    with Ingest(request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def simulated(out, ingest, **environment):
    """Run a population of one user as a shell does, with a key set; returns what it printed."""
    say = scripted_user()
    with FakeEndpoint(lambda body: say(body["messages"], {})) as served:
        command = [sys.executable, "-m", "starec", "simulate", "--users", "1", "--turns", "1", "--model", "fake"]
        own = {name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH", "LANGCHAIN"))}
        given = {**own, "LANGSMITH_ENDPOINT": ingest.url, "LANGSMITH_API_KEY": KEY, **environment}
        command += ["--base-url", served.url, "--out", str(out)]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("ingest", "path"), [(True, "/runs/multipart"), (False, "/runs/batch")], indirect=["ingest"], ids=str
)
def test_nodes_and_requests_arrive_with_prompts_answers_and_tokens_but_no_key(ingest, path, tmp_path):
    printed = simulated(tmp_path / "run", ingest, LANGSMITH_TRACING="true", LANGSMITH_PROJECT="users")
    assert {(kind, where, key) for kind, where, key in ingest.requests if kind == "POST"} == {("POST", path, KEY)}
    (step,) = read_steps(tmp_path / "run")
    named = {run["name"]: run for run in ingest.runs.values()}
    assert {"fast_rank", "compare", "update_memory"} <= named.keys()
    assert all(run["session_name"] == "users" and run["end_time"] and not run.get("error") for run in named.values())
    asked = [run for run in ingest.runs.values() if run["run_type"] == "llm"]
    assert len(asked) == len(step.calls) == 2
    for call in step.calls:
        run = named[call.kind]
        assert ingest.runs[run["parent_run_id"]]["run_type"] == "chain"
        (prompt,) = run["inputs"]["messages"]
        assert [message["kwargs"]["content"] for message in prompt] == [one["content"] for one in call.messages]
        ((generation,),) = run["outputs"]["generations"]
        assert generation["text"] == call.completion
        used = generation["message"]["kwargs"]["usage_metadata"]
        assert used["input_tokens"] == call.usage.prompt_tokens > 0
        assert used["output_tokens"] == call.usage.completion_tokens > 0
        assert run["extra"]["metadata"]["ls_model_name"] == "fake"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(KEY.encode() in text for text in [*written, printed.encode()])
    assert KEY not in json.dumps(ingest.runs)


@pytest.mark.parametrize("ingest", [True], indirect=True)
def test_nothing_is_sent_unless_asked_for(ingest, tmp_path):
    simulated(tmp_path / "run", ingest)
    assert not ingest.requests

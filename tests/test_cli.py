"""The command line: light, scriptable, with the exit statuses and files it promises."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, scripted

from starec_agents.llm.options import named_models
from starec_agents.runs.reading import read_run, read_steps
from starec_env.cli import COMMANDS
from starec_env.errors import InvalidOption
from starec_env.renamed import renamed

STAREC = [sys.executable, "-m", "starec_env.cli"]


def starec(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STAREC, *map(str, args)], capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(scripted(), models=("scripted",)) as server:
        yield server


def simulate_args(endpoint: FakeEndpoint, out: Path, **options: object) -> list[object]:
    given = {"users": 3, "turns": 2, "base-url": endpoint.url, "model": "scripted", "out": out, **options}
    return ["simulate", "--quiet", *(part for name, value in given.items() for part in (f"--{name}", value))]


def test_top_level_help_lists_every_command_without_importing_them() -> None:
    code = "import sys\nfrom starec_env.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
    assert "starec_agents" not in done.stdout.split() and "langgraph" not in done.stdout.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(command: str) -> None:
    done = starec(command, "--help")
    assert done.returncode == 0
    assert "Example: starec" in " ".join(done.stdout.split())


def test_simulate_prints_the_table_and_writes_the_files(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    done = starec(*simulate_args(endpoint, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "NDCG@10" in done.stdout and "run" in done.stdout
    for name in ("run.json", "steps.jsonl", "candidates.parquet", "metrics.json", "prompts.jsonl", "users.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 6


def test_two_servers_share_the_requests_of_a_run(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    with FakeEndpoint(scripted(), models=("scripted",)) as second:
        before = endpoint.requests
        done = starec(*simulate_args(endpoint, tmp_path / "run", users=8), "--base-url", second.url)
        assert done.returncode == 0, done.stderr
        assert endpoint.requests - before > 5 < second.requests


@pytest.mark.parametrize("answers", ["paper", "compact"])
@pytest.mark.parametrize("agent", ["rank-only", "append-history"])
def test_agents_and_answer_formats_are_options(
    agent: str, answers: str, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    done = starec(*simulate_args(endpoint, tmp_path / "run", agent=agent, **{"answer-format": answers}))
    assert done.returncode == 0, done.stderr
    steps = list(read_steps(tmp_path / "run"))
    assert all(step.ranking.valid for step in steps)
    assert {call.kind for step in steps for call in step.calls} == {"rank"}


def test_a_graph_of_the_users_own_is_named_by_module_and_function(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from starec_agents.graphs import rank_only\ndef graph(): return rank_only()\n")
    args = simulate_args(endpoint, tmp_path / "run", agent="mine:graph")
    assert starec(*args, cwd=tmp_path).returncode == 0
    wrong = starec(*simulate_args(endpoint, tmp_path / "other", agent="mine:grpah"), cwd=tmp_path)
    assert wrong.returncode == 1 and "MODULE:FUNCTION" in wrong.stderr


def test_nodes_ask_models_by_name_and_a_run_says_which_they_were_and_what_it_ran_on(tmp_path: Path) -> None:
    with FakeEndpoint(scripted(), models=("big", "small")) as server:
        args = simulate_args(server, tmp_path / "run", agent="planner", model="big", executor="langgraph", users=1)
        assert starec(*args, "--model", "ranker=small", "--model", "critic=big").returncode == 0
        run = read_run(tmp_path / "run")
        assert run["models"] == {"critic": "big", "ranker": "small"} and run["model"] == "big"
        assert run["endpoints"]["ranker"][0]["model"] == "small"
        assert run["sessions"][0]["executor"] == "langgraph"
        wrong = starec(*args, "--model", "ranker=absent")
        assert wrong.returncode == 1 and "absent" in wrong.stderr and "small" in wrong.stderr


@pytest.mark.parametrize("given", [["a", "b"], ["x=a", "x=b"], ["x="], ["not a name=b"], []])
def test_models_that_contradict_each_other_are_refused(given: list[str]) -> None:
    assert named_models(["x=a", "y=b"]) == ("a", {"x": "a", "y": "b"})
    with pytest.raises(InvalidOption, match="--model"):
        named_models(given)


def test_a_mistyped_command_gets_the_nearest_name() -> None:
    done = starec("simulat")
    assert done.returncode == 2 and "did you mean 'simulate'" in done.stderr


def test_show_tells_a_story_and_suggests_the_nearest_user(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    starec(*simulate_args(endpoint, tmp_path / "run"))
    user = next(read_steps(tmp_path / "run")).user_id
    done = starec("show", tmp_path / "run", "--user", user)
    assert done.returncode == 0 and f"user {user}, turn" in done.stdout and "The user took" in done.stdout
    everyone = starec("show", tmp_path / "run")
    assert everyone.returncode == 0 and f" {user} " in everyone.stdout and "--user ID" in everyone.stdout
    wrong = starec("show", tmp_path / "run", "--user", f"{user}9")
    assert wrong.returncode == 1 and f"did you mean '{user}'" in wrong.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "ml-latest-smal"}, "did you mean 'ml-latest-small'"),
        ({"agent": "starek"}, "did you mean 'starec'"),
        ({"users": 100_000}, "users with a turn"),
        ({"model": "absent"}, "scripted"),
        ({"base-url": "http://127.0.0.1:9/v1"}, "127.0.0.1:9"),
        ({"base-url": "http://no-such-host.invalid/v1"}, "no-such-host.invalid"),
    ],
)
def test_bad_options_end_with_one_line_that_helps(
    options: dict[str, object], said: str, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    done = starec(*simulate_args(endpoint, tmp_path / "run", **options))
    assert done.returncode not in (0, 130)
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_old_flag_is_spelled_anew_wherever_it_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    old = {"--retries": "--max-retries"}
    given = ["--retries=3", "--out", "retries", "--", "--retries", "3"]
    assert renamed(given, old) == ["--max-retries=3", *given[1:]]
    assert capsys.readouterr().err.count("--retries is --max-retries now") == 1


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    with FakeEndpoint(scripted(), models=("scripted",), latency=1) as slow:
        args = simulate_args(slow, tmp_path / "run", users=12, concurrency=2)
        process = subprocess.Popen([*STAREC, *map(str, args)], stderr=subprocess.PIPE, text=True)
        steps = tmp_path / "run" / "steps.jsonl"
        while not (steps.exists() and steps.stat().st_size) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
        assert "Traceback" not in said and "the same command with --resume" in said
        assert process.returncode == 130
        before = len(list(read_steps(tmp_path / "run")))
        assert 0 < before < 24
        slow.latency = 0
        assert starec(*args).returncode == 1  # not without --resume
        asked = slow.requests
        assert starec(*args, "--resume").returncode == 0
        assert len(list(read_steps(tmp_path / "run"))) == 24
        assert slow.requests - asked <= 2 * (24 - before) + 2


def test_users_that_fail_make_the_exit_status_say_so(tmp_path: Path) -> None:
    def reply(body: dict[str, object]) -> str:
        raise RuntimeError("every answer is a 500")

    with FakeEndpoint(reply, models=("scripted",)) as broken:
        done = starec(*simulate_args(broken, tmp_path / "run", users=2, turns=1, **{"max-retries": 0}))
    assert done.returncode == 3
    assert "2 users failed" in done.stderr and "--resume" in done.stderr


def test_the_api_key_is_nowhere_in_a_runs_files(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    os.environ["STAREC_TEST_KEY"] = "sk-very-secret"
    try:
        args = simulate_args(endpoint, tmp_path / "run", **{"api-key-env": "STAREC_TEST_KEY"})
        done = starec(*args)
    finally:
        del os.environ["STAREC_TEST_KEY"]
    assert done.returncode == 0
    assert endpoint.headers[-1]["authorization"] == "Bearer sk-very-secret"
    for path in (tmp_path / "run").iterdir():
        assert b"sk-very-secret" not in path.read_bytes(), path
    assert "sk-very-secret" not in done.stdout + done.stderr


def test_request_fields_headers_and_users_are_given_on_the_shell(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("3\n7\n")
    more = ["--extra-body", '{"top_k": 3, "top_p": null}', "--header", "X-Team=research", "--max-history", 4]
    args = [*simulate_args(endpoint, tmp_path / "run"), *more, "--users-file", tmp_path / "users.txt"]
    place = args.index("--users")
    done = starec(*args[:place], *args[place + 2 :])
    assert done.returncode == 0, done.stderr
    assert {step.user_id for step in read_steps(tmp_path / "run")} == {3, 7}
    recorded = (tmp_path / "run" / "run.json").read_text()
    assert '"top_k": 3' in recorded and "X-Team" in recorded and "research" not in recorded
    both = starec(*args)
    assert both.returncode == 1 and "--users has no effect with --users-file" in both.stderr


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--extra-body", "{top_k}"), "no JSON"),
        (("--extra-body", "3"), "JSON object"),
        (("--header", "X"), "NAME=VALUE"),
    ],
)
def test_request_fields_that_cannot_be_read_are_refused(
    endpoint: FakeEndpoint, tmp_path: Path, option: tuple[str, str], reason: str
) -> None:
    done = starec(*simulate_args(endpoint, tmp_path / "run"), *option)
    assert done.returncode == 1 and reason in done.stderr and not (tmp_path / "run").exists()

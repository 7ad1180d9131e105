"""--dry-run: everything is checked and counted before the first user, and nothing is written."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, completion, scripted
from test_cli import simulate_args, starec


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(scripted(), models=("scripted",)) as server:
        yield server


def counted(text: str, what: str) -> float:
    found = re.search(rf"([\d,.]+) {what}", text)
    assert found, text
    return float(found[1].replace(",", ""))


def eval_args(endpoint: FakeEndpoint, *more: object) -> list[object]:
    return ["eval", "--quiet", "--base-url", endpoint.url, "--model", "scripted", "--dry-run", *more]


def test_a_dry_run_counts_what_the_run_then_asks_and_writes_nothing(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    args, before = simulate_args(endpoint, tmp_path / "run"), endpoint.requests
    planned = starec(*args, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert endpoint.requests == before and not list(tmp_path.iterdir())
    assert starec(*args).returncode == 0
    assert counted(planned.stdout, "users") == 3 and counted(planned.stdout, "turns") == 6
    assert counted(planned.stdout, "calls") == endpoint.requests - before == 12
    bodies = list(endpoint.bodies)[-12:]
    characters = sum(len(message["content"]) for body in bodies for message in body["messages"])
    estimate = float(re.search(r"prompt tokens: about ([\d,]+)", planned.stdout)[1].replace(",", ""))
    assert estimate == pytest.approx(characters / 4, rel=0.01)


def test_a_probe_asks_that_many_rankings_and_says_hours_and_cost(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    before = endpoint.requests
    more = ["--dry-run", "--probe", 8, "--price-in", 1, "--price-out", 4]
    done = starec(*simulate_args(endpoint, tmp_path / "run", users=10), *more)
    assert done.returncode == 0, done.stderr
    assert endpoint.requests - before == 8 and not list(tmp_path.iterdir())
    assert "probe: 8 ranking calls" in done.stdout and "hours" in done.stdout
    read, written = counted(done.stdout, "prompt tokens and [\\d,]+ of"), counted(done.stdout, "of answers")
    assert f"cost: about {(read + 4 * written) / 1e6:.2f}" in done.stdout


def test_a_probe_of_a_server_that_counts_no_tokens_estimates_the_cost(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in completion("1. A film - why not").items() if key != "usage"}

    with FakeEndpoint(reply, models=("scripted",)) as server:
        more = ["--dry-run", "--probe", 2, "--price-in", 1000]
        done = starec(*simulate_args(server, tmp_path / "run"), *more)
    assert "(estimated: the server counts no tokens)" in done.stdout, done.stderr
    assert counted(done.stdout, "prompt tokens and [\\d,]+ of") > 1000 and "cost: about 0.00" not in done.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--probe", 8], "--probe has no effect without --dry-run"),
        (["--dry-run", "--price-in", 1], "--price-in has no effect without --probe"),
        (["--dry-run", "--agent", "bad:graph"], "ended without a ranking"),
    ],
)
def test_what_is_wrong_is_said_before_a_run(
    more: list[object], said: str, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "from langgraph.graph import StateGraph\nfrom starec_agents.graph import Context, State\n"
        "def graph():\n    made = StateGraph(State, context_schema=Context)\n"
        "    made.add_node('idle', lambda state: {})\n    made.set_entry_point('idle')\n    return made.compile()\n"
    )
    done = starec(*simulate_args(endpoint, tmp_path / "run"), *more, cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr and not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_this_runs_is_refused_by_a_dry_run(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    args = simulate_args(endpoint, tmp_path / "run")
    assert starec(*args).returncode == 0
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def refused(*given: object) -> str:
        done = starec(*given, "--dry-run")
        assert done.returncode == 1
        return done.stderr

    assert "holds a run already" in refused(*args)
    assert "turns" in refused(*simulate_args(endpoint, tmp_path / "run", turns=3), "--resume")
    (tmp_path / "file").touch()
    assert "can't be written" in refused(*simulate_args(endpoint, tmp_path / "file" / "run"))
    assert starec(*args, "--dry-run", "--resume").returncode == 0
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_eval_plans_each_method_that_asks_a_model(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    before, out = endpoint.requests, tmp_path / "table"
    methods = ["--methods", "pop,starec,llmrank", "--users", 4, "--warmup", 1, "--repetitions", 2, "--out", out]
    done = starec(*eval_args(endpoint, *methods))
    assert done.returncode == 0, done.stderr
    assert endpoint.requests == before and not out.exists()
    lines = [line for line in done.stdout.splitlines() if " users, " in line]
    assert [line.partition(":")[0] for line in lines] == ["starec", "llmrank"]
    assert counted(lines[0], "turns") == 12 and counted(lines[1], "turns") == 8
    assert counted(lines[0], "calls") == 16 and counted(lines[1], "calls") == 24
    args = [part for part in eval_args(endpoint, *methods) if part != "--dry-run"]
    assert starec(*args).returncode == 0
    assert endpoint.requests - before == 40


def test_eval_has_nothing_to_plan_without_a_model(tmp_path: Path) -> None:
    done = starec("eval", "--methods", "pop", "--dry-run")
    assert done.returncode == 1 and "--dry-run has no effect unless one of --methods asks a model" in done.stderr

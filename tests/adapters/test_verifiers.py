"""The verifiers adapter with verifiers itself: `make test-adapters`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from adapters.common import BOTH, MISSING, directly, scripted_server

from starec_agents.adapters import Episodes

pytestmark = pytest.mark.adapters
vf = pytest.importorskip("verifiers.v1", reason="make test-adapters installs verifiers")

MODULE = """
from starec_agents.adapters.verifiers_env import AgentHarness, UserEnv, Users

__all__ = ["AgentHarness", "UserEnv", "Users"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_users.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_users", None)


@pytest.mark.parametrize(("env", "agent"), BOTH)
def test_vf_eval_from_the_shell(env, agent, folder):
    vf_eval = Path(sys.executable).with_name("vf-eval")
    with scripted_server() as server:
        options = {
            "--env.taskset.env": env,
            "--env.taskset.agent": agent,
            "--env.taskset.users": "3",
            "--env.taskset.turns": "2",
            "--client.base-url": server.url,
            "--client.api-key-var": "NO_KEY",
            "--model": "fake",
            "--num-rollouts": "2",
            "--output-dir": str(folder),
            "--run.dir": "run",
        }
        command = [vf_eval, "my_users", *(word for pair in options.items() for word in pair), "--no-push", "--no-rich"]
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "NO_KEY": "none"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        requests = server.requests
    lines = (folder / "run" / "traces.jsonl").read_text().splitlines()
    traces = [trace for line in lines for trace in vf.WireEpisode.model_validate_json(line).traces]
    episodes = Episodes(env=env, agent=agent, users=3, turns=2)
    assert sorted(trace.task.data.user_id for trace in traces) == sorted(2 * episodes.user_ids)
    expected = {user: directly(episodes, user) for user in episodes.user_ids}
    assert requests == 2 * sum(len(one.prompts) for one in expected.values())
    for trace in traces:
        played = expected[trace.task.data.user_id]
        assert trace.reward == pytest.approx(played.mean(2, MISSING[env]))
        # A branch, and so a sample to train on, is one prompt with its answer: nothing of earlier prompts is in it.
        said = [[(m.role, m.content) for m in branch.messages] for branch in trace.branches]
        assert [one[:-1] for one in said] == [[(m["role"], m["content"]) for m in prompt] for prompt in played.prompts]
        assert {one[-1][0] for one in said} == {"assistant"}


def test_load_environment_has_the_users_and_the_options(folder):
    config = vf.resolve_env_config({"taskset": {"id": "my_users", "users": 2, "turns": 1, "agent": "planner"}})
    environment = vf.load_environment(config)
    tasks = list(environment.taskset)
    assert [task.data.user_id for task in tasks] == Episodes(users=2, turns=1).user_ids
    assert tasks[0].data.episodes == Episodes(users=2, turns=1, agent="planner")

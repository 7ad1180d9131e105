"""The inspect_ai adapter with inspect_ai itself: `make test-adapters`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from adapters.common import BOTH, MISSING, directly, scripted_server

from starec_agents.adapters import Episodes

pytestmark = pytest.mark.adapters
pytest.importorskip("inspect_ai", reason="make test-adapters installs inspect_ai")


@pytest.mark.parametrize(("env", "agent"), BOTH)
def test_inspect_eval_from_the_shell(env, agent, tmp_path):
    from inspect_ai.log import list_eval_logs, read_eval_log

    inspect = Path(sys.executable).with_name("inspect")
    options = [
        "-T",
        f"env={env}",
        "-T",
        f"agent={agent}",
        "-T",
        "users=3",
        "-T",
        "turns=2",
        "--display",
        "none",
        "--log-dir",
        tmp_path,
    ]
    with scripted_server() as server:
        environment = {**os.environ, "LOCAL_BASE_URL": server.url, "LOCAL_API_KEY": "none"}
        command = [inspect, "eval", "starec_agents/users", "--model", "openai-api/local/fake", *options]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        requests = server.requests
    log = read_eval_log(list_eval_logs(str(tmp_path))[0])
    assert log.status == "success"
    episodes = Episodes(env=env, agent=agent, users=3, turns=2, split="test")
    expected = {str(user): directly(episodes, user) for user in episodes.user_ids}
    assert requests == sum(len(one.prompts) for one in expected.values())
    assert {sample.id for sample in log.samples} == expected.keys()
    means = {user: one.mean(2, MISSING[env]) for user, one in expected.items()}
    for sample in log.samples:
        assert sample.scores["reward"].value == pytest.approx(means[sample.id])
        assert json.loads(sample.scores["reward"].answer) == expected[sample.id].rewards
    assert log.results.scores[0].metrics["mean"].value == pytest.approx(sum(means.values()) / 3)


async def test_the_chat_model_passes_schemas_thoughts_and_cut_offs():
    from inspect_ai.model import ContentReasoning, ContentText, ModelOutput, ModelUsage, get_model
    from inspect_ai.model._model import init_active_model  # noqa: PLC2701

    from starec_agents.adapters.inspect_task import InspectChat
    from starec_agents.tasks import ranking_format

    asked = []

    def answer(messages, tools, choice, config):
        asked.append(config)
        parts = [ContentReasoning(reasoning="hm"), ContentText(text="yes")]
        output = ModelOutput.from_content("m", parts, stop_reason="max_tokens")
        output.usage = ModelUsage(input_tokens=7, output_tokens=2, total_tokens=9)  # else it is counted with a download
        return output

    init_active_model(get_model("mockllm/model", custom_outputs=answer), get_model("mockllm/model").config)
    schema = ranking_format("scores").schema(3)
    told = await InspectChat().complete([{"role": "user", "content": "?"}], schema=schema, stop=["x"], temperature=0.5)
    assert (told.text, told.reasoning, told.cut_off) == ("yes", "hm", True)
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (7, 2)
    (config,) = asked
    assert config.stop_seqs == ["x"] and config.temperature == 0.5
    assert config.response_schema.json_schema.model_dump(exclude_none=True)["required"] == schema["required"]

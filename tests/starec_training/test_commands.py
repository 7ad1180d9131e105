"""`starec train`: from a data set to rows and to a policy by commands alone; faults in one line."""

import asyncio
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint
from support_training import ROOT, drawn_user, kill_when_there, logged, losses, starec
from trl import GRPOConfig

from starec_agents.llm import OpenAIChat
from starec_agents.llm.base import Endpoint
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split, make_split
from starec_env.errors import UnknownName
from starec_env.reading import READINGS
from starec_training import commands
from starec_training.commands import UNFINISHED, DataArguments, GrpoArguments, TeachArguments
from starec_training.dataset import Rows, read_rows, write_rows
from starec_training.grpo import paper_settings
from starec_training.teaching import heartbeat


def test_teach_writes_screened_rows_of_training_users_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heldout = tmp_path / "heldout.txt"
    heldout.write_text("\n".join(map(str, range(1, 300))))
    out = tmp_path / "taught"
    command = ["teach", "--n-train", 30, "--turns", 2, "--answer-format", "compact", "--heldout", heldout]
    assert starec(*command, "--n-candidates", 5, "--min-ndcg", 0.6, "--out", out) == 0
    rows = read_rows(out / "rows.jsonl")
    users = json.loads((out / "users.json").read_text())
    assert len(users["train"]) == 30
    assert {row.snapshot.user_id for row in rows} <= set(users["train"])
    assert not {str(user) for user in users["train"]} & set(users["heldout"])
    report = json.loads((out / "report.json").read_text())
    assert report["tasks"]["rank"]["lost"] == {"misranked": report["tasks"]["rank"]["prompts"] - len(
        [row for row in rows if row.task == "rank"])}  # fmt: skip
    assert "prompts kept" in capsys.readouterr().out
    assert starec(*command, "--n-candidates", 5, "--min-ndcg", 0.6, "--out", out) == 0  # goes on with its own run
    assert {row.lineage["split"] for row in rows} == {Split.load(out / "split.json").hash} == {report["split"]}


def test_sft_and_grpo_run_by_their_configs(
    tiny: Path, taught: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", taught)
    users = {"train": [row.snapshot.user_id for row in taught], "heldout": [999]}
    (tmp_path / "users.json").write_text(json.dumps(users))
    (tmp_path / "sft.yaml").write_text(
        f"model: {tiny}\nrows: [{tmp_path}]\nlora_rank: 4\nmax_steps: 9\nper_device_train_batch_size: 2\n"
        f"output_dir: {tmp_path / 'sft'}\nusers_file: {tmp_path / 'users.json'}\nsize: 7B\n"
    )
    command = ["sft", "--config", tmp_path / "sft.yaml", "--max_steps", 2, "--lr_scheduler_type", "constant"]
    command += ["--eval-users", 2, "--eval_steps", 1]
    assert starec(*command, "--minutes", 0) == UNFINISHED
    assert starec(*command) == 0
    assert logged(tmp_path / "sft", "learning_rate") == [1e-5, 1e-5]
    assert len(logged(tmp_path / "sft", "eval_loss")) == 2
    assert "trained: " in capsys.readouterr().out
    command = ["grpo", "--model", tmp_path / "sft" / "final", "--rows", tmp_path, "--out", tmp_path / "rl"]
    command += ["--max_steps", 1, "--num_generations", 2, "--per_device_train_batch_size", 2, "--beta", 0]
    command += ["--gradient_accumulation_steps", 1, "--max_completion_length", 8, "--algorithm", "reinforce++"]
    assert starec(*command) == 0
    assert logged(tmp_path / "rl", "kl") == []
    assert logged(tmp_path / "rl", "learning_rate") == [1e-6]


def test_a_killed_teacher_resumes_to_the_same_rows(tmp_path: Path) -> None:
    with FakeEndpoint(drawn_user, latency=0.02) as server:
        command = ["teach", "--teacher", "llm", "--base-url", server.url, "--model", "fake", "--n-train", 8]
        command += ["--turns", 2, "--min-ndcg", 0.5, "--rethinks", 1, "--samples", 2]
        assert starec(*command, "--out", tmp_path / "whole") == 0
        whole = server.requests
        kill_when_there(["train", *command, "--out", tmp_path / "broken"], tmp_path / "broken/population/steps.jsonl")
        assert not (tmp_path / "broken" / "rows.jsonl").exists()
        assert starec(*command, "--out", tmp_path / "broken") == 0
        assert server.requests - whole <= whole + 64  # what was in flight is asked again, and nothing else
        sent = server.bodies[0]
    for name in ("rows.jsonl", "users.json", "report.json", "split.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.6, 0.95, 16384)
    told = json.loads((tmp_path / "whole" / "report.json").read_text())["tasks"]["rank"]
    assert 0 < told["passed"] < told["prompts"] and told["resampled"] + sum(told["rethought"]) > 0
    rows = read_rows(tmp_path / "whole" / "rows.jsonl")
    assert all(row.completion.startswith("<think>\n") and row.completion.count("</think>") == 1 for row in rows)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("min_interactions", ["--min-interactions", 11]),  # data
        ("n_train", ["--n-train", 11]),  # users
        ("n_candidates", ["--n-candidates", 6]),  # turns
        ("max_history", ["--max-history", 3]),  # prompts
        ("min_ndcg", ["--min-ndcg", 0.7]),  # screening
        ("thinks", ["--thinks", "true"]),  # the teacher
        ("sample_seed", ["--seed", 1]),
    ],
)
def test_a_changed_setting_of_a_teachers_folder_is_refused(
    field: str, changed: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["teach", "--n-train", 10, "--turns", 1, "--n-candidates", 5, "--answer-format", "labels"]
    assert starec(*command, "--out", tmp_path) == 0
    rows = (tmp_path / "rows.jsonl").read_text()
    assert starec(*command, *changed, "--out", tmp_path) == 1
    assert re.search(rf"its .*\b{field}\b.* differ", capsys.readouterr().err)
    assert (tmp_path / "rows.jsonl").read_text() == rows
    assert starec(*command, "--concurrency", 2, "--out", tmp_path) == 0  # the pace may change


@pytest.mark.parametrize("changed", [["--temperature", 0.5], ["--samples", 3], ["--rethinks", 0], ["--max-tokens", 99]])
def test_a_changed_setting_of_an_llm_teacher_is_refused_before_it_is_asked(
    changed: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint(drawn_user) as server:
        command = ["teach", "--teacher", "llm", "--base-url", server.url, "--model", "fake", "--n-train", 3]
        command += ["--turns", 1, "--samples", 1, "--out", tmp_path]
        assert starec(*command) == 0
        asked = server.requests
        assert starec(*command, *changed) == 1
        assert server.requests == asked
    assert f"{str(changed[0])[2:].replace('-', '_')} was" in capsys.readouterr().err


def test_a_split_files_test_users_are_never_taught_under_any_reading(tmp_path: Path) -> None:
    for name in ("default", "paper"):
        split = make_split(DataSpec(), READINGS[name], test=100, validation=20, train=30)
        split.save(tmp_path / f"{name}.json")
        command = ["teach", "--split-file", tmp_path / f"{name}.json", "--turns", 1, "--n-candidates", 5]
        assert starec(*command, "--answer-format", "labels", "--out", tmp_path / name) == 0
        rows = read_rows(tmp_path / name / "rows.jsonl")
        users = {row.snapshot.user_id for row in rows}
        assert users <= set(split.train) and not users & {*split.test, *split.validation}
        assert {row.lineage["split"] for row in rows} == {split.hash}
        run = json.loads((tmp_path / name / "population" / "run.json").read_text())
        assert run["targets"] == split.reading.targets


def test_an_llm_teacher_is_asked_with_headers_and_fields_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEAM_KEY", "sk-secret")
    with FakeEndpoint(drawn_user) as server:
        command = ["teach", "--teacher", "llm", "--base-url", server.url, "--model", "fake", "--n-train", 2, "--turns"]
        command += [1, "--samples", 1, "--header", "X-Team=research", "--header", "api-key=env:TEAM_KEY"]
        command += ["--extra-body", '{"top_k": 3, "top_p": null}', "--max-wait", 5, "--out", tmp_path]
        assert starec(*command) == 0
        sent, headers = server.bodies[-1], server.headers[-1]
        assert (headers["X-Team"], headers["api-key"]) == ("research", "sk-secret")
        assert sent["top_k"] == 3 and "top_p" not in sent
        assert not any(b"sk-secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert starec(*command, "--extra-body", '{"top_k": 4}') == 1
        assert "extra_body was" in capsys.readouterr().err
        assert starec(*command, "--header", "X-Team") == 1
        assert "wanted NAME=VALUE" in capsys.readouterr().err


async def test_an_hour_without_an_answer_is_told() -> None:
    told, enough = list[str](), asyncio.Event()

    def say(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            enough.set()

    llm = OpenAIChat(Endpoint(base_url="http://127.0.0.1:9/v1", model="r1", timeout_s=1800))
    async with heartbeat(llm, lambda: "", say, every_s=0.001):
        await enough.wait()
    assert "no answer from OpenAIChat('r1'" in told[0] and "each for at most 1,800 s" in told[0]


def test_a_round_killed_while_it_collects_resumes_to_the_same_answers_and_losses(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["grpo", "--model", student, "--n-train", 5, "--turns", 2, "--n-candidates", 4, "--max-history", 2]
    command += [
        "--answer-format",
        "compact",
        "--collect-batch",
        2,
        "--tasks",
        "rank",
        "--max_completion_length",
        30,
        "--max_steps",
        2,
    ]
    command += ["--hard", 0.5, "--hard-kind", "near", "--num_generations", 2, "--per_device_train_batch_size", 4]
    command += ["--gradient_accumulation_steps", 1, "--save_steps", 1, "--reward", "ndcg", "--learning_rate", 1e-3]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    kill_when_there(["train", *command, "--out", broken], broken / "round-0/population/steps.jsonl")
    assert not (broken / "round-0" / "rows-0.jsonl").exists()
    for out in (broken, whole):
        assert starec(*command, "--out", out) == 0
    rows = [(out / "round-0" / "rows-0.jsonl").read_text() for out in (broken, whole)]
    assert rows[0] == rows[1]
    assert losses(broken / "round-0" / "train") == losses(whole / "round-0" / "train")
    told = json.loads((whole / "round-0" / "population" / "run.json").read_text())
    assert (told["hard"], told["hard_kind"]) == (0.5, "near")
    assert starec(*command, "--out", whole, "--n-train", 4) == 1
    assert "holds another run: its train_users differ" in capsys.readouterr().err


def test_the_configuration_in_the_docs_is_what_the_command_takes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "grpo.yaml").write_text(block.replace("report_to: tensorboard", "report_to: none"))
    command = ["--config", str(tmp_path / "grpo.yaml"), "--out", str(tmp_path / "rl")]
    given, config = commands.grpo_settings(command)
    assert (given.rounds, given.n_candidates, given.hard) == (3, [10, 20], [0, 0.25, 0.5])
    assert (config.generation_batch_size, config.num_generations, config.beta) == (512, 8, 1e-3)


def test_metrics_go_to_tensorboard_where_asked(student: Path, taught: Rows, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_rows(tmp_path / "rows.jsonl", taught)
    command = ["sft", "--model", student, "--rows", tmp_path, "--max_steps", 2, "--report_to", "tensorboard"]
    assert starec(*command, "--per_device_train_batch_size", 2, "--out", tmp_path / "sft") == 0
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    found = reading.EventAccumulator(str(events.parent)).Reload()
    assert [entry.value for entry in found.Scalars("train/loss")] == pytest.approx(logged(tmp_path / "sft", "loss"))


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (["sft", "--out", "x"], "nothing to learn from"),
        (["sft", "--config", "none.yaml"], "none.yaml"),
        (["teach", "--teacher", "llm", "--out", "x"], "--base-url"),
        (["teach", "--teacher", "oracle", "--out", "x"], "rules"),
        (["teach", "--teacher", "hindsight"], "one who knows the answer"),
        (["teach", "--split-file", "none.json"], "none.json is no split file"),
        (["teach", "--split-file", "x", "--heldout", "y"], "--heldout has no effect with --split-file"),
        (
            ["teach", "--teacher", "llm", "--base-url", "http://127.0.0.1:9/v1", "--model", "r1", "--max-retries", "0"],
            "127.0.0.1:9",
        ),
        (["teach", "--users-file", "none.json"], "none.json is no file of users"),
        (["teach", "--users-file", "none.json", "--n-train", "3"], "--n-train has no effect with --users-file"),
        (["teach", "--base-url", "http://x/v1"], "--base-url has no effect without --teacher llm"),
        (["teach", "--columns", "user=u"], "--columns is for a file of your own"),
        (["teach", "--dataset", "mine.csv"], "nor is there a file of that name"),
        (["teach", "--min-interactions", "0"], "min_interactions=0"),
        (
            ["grpo", "--rows", "rows.jsonl", "--turns", "3", "--items", "x"],
            "--items, --turns have no effect with --rows",
        ),
        (["grpo", "--reward", "position2"], "did you mean 'position'"),
        (["grpo", "--reward-funcs", "nowhere:none"], "wanted MODULE:FUNCTION"),
        (["grpo", "--agent", "nobody"], "nobody"),
        (["grpo", "--split-file", "none.json", "--n-train", "3"], "--n-train has no effect with --split-file"),
        (["sft", "--template-switches", "on", "--out", "x"], "wanted JSON"),
    ],
)
def test_faults_are_told_in_one_line(
    command: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert starec(*command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("starec: ") and fault in error


def test_a_teacher_ranks_on_a_file_of_ones_own(tmp_path: Path) -> None:
    lines = ["u,i,r"] + [
        f"user {u},item {(7 * u + k * (u % 3 + 1)) % 40},{(u + k) % 10}" for u in range(30) for k in range(12)
    ]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    (tmp_path / "titles.csv").write_text("\n".join(["id,name", *(f"item {i},The {i}th" for i in range(40))]))
    (tmp_path / "teach.yaml").write_text(
        f"dataset: {tmp_path / 'mine.csv'}\ncolumns: {{user: u, item: i, rating: r}}\nuser_turns: 2\n"
        "answer-format: compact\n"
    )
    own = ["--items", tmp_path / "titles.csv", "--liked-above", 4, "--min-interactions", 3, "--domain", "pamphlet"]
    command = ["teach", "--config", tmp_path / "teach.yaml", *own, "--n-candidates", 5, "--out", tmp_path / "out"]
    assert starec(*command) == 0
    about = json.loads((tmp_path / "out" / "population" / "run.json").read_text())
    assert about["turns"] == 2 and about["data"]["columns"] == {"user": "u", "item": "i", "rating": "r"}
    assert any("The " in row.prompt[-1]["content"] for row in read_rows(tmp_path / "out" / "rows.jsonl"))


@pytest.mark.parametrize(
    ("stage", "flag", "new"),
    [
        ("teach", "--n_train", "--n-train"),
        ("teach", "--user_turns", "--turns"),
        ("teach", "--user-turns", "--turns"),
        ("teach", "--sample_seed", "--seed"),
        ("teach", "--max_tokens", "--max-tokens"),
        ("grpo", "--sample_seed", "--sample-seed"),
        ("grpo", "--user_turns", "--turns"),
        ("grpo", "--round_users=x", "--round-users"),
        ("sft", "--lora_rank", "--lora-rank"),
    ],
)
def test_old_spellings_are_taken_with_a_warning_that_names_the_new(
    stage: str, flag: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flag, equals, _ = flag.partition("=")
    args = [f"{flag}=much"] if equals else [flag, "much"]
    assert starec(stage, *args) == 2  # no number, which the new name's error says
    output = capsys.readouterr().err
    assert output.count(f"{flag} is {new} now: the old name goes with the next release") == 1
    assert f"argument {new}" in output


def test_an_option_that_is_not_there_is_refused_with_the_nearest_that_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no option of starec train teach '--n-trian': did you mean '--n-train'"):
        commands._parse(["--n-trian", "4"], (TeachArguments,), "teach", {})
    (tmp_path / "teach.yaml").write_text("tunrs: 3\n")
    with pytest.raises(UnknownName, match="'--tunrs': did you mean '--turns'"):
        commands._parse(["--config", str(tmp_path / "teach.yaml")], (TeachArguments,), "teach", {})


def test_trls_own_options_and_new_spellings_warn_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--output_dir", "x", "--max_steps", "3", "--n-train", "4", "--seed", "5", "--sample-seed", "6"]
    given, config = commands._parse(command, (GrpoArguments, GRPOConfig), "grpo", paper_settings())
    assert (given.n_train, given.sample_seed, config.seed, config.max_steps, config.output_dir) == (4, 6, 5, 3, "x")
    assert commands._parse(["--out", "y"], (GrpoArguments, GRPOConfig), "grpo", paper_settings())[1].output_dir == "y"
    assert commands._parse(["--seed", "7"], (TeachArguments,), "teach", {})[0].sample_seed == 7
    assert "old name" not in capsys.readouterr().err


def test_a_stage_takes_each_option_of_a_data_set() -> None:
    named = {field.name: field.default for field in fields(DataArguments)}
    wanted = DataSpec()
    for name in DataSpec.model_fields:
        assert named[name] == (getattr(wanted, name) or None)


def test_help_shows_our_options_first_and_trls_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert starec("grpo", "--help") == 0
    shown = capsys.readouterr().out
    assert "--rounds" in shown and "Example: starec train grpo" in " ".join(shown.split())
    assert "--num-generations" not in shown and "--help-trl" in shown
    assert starec("grpo", "--help-trl") == 0
    shown = capsys.readouterr().out
    assert "--rounds" in shown and "--num-generations" in shown and "--num_generations" not in shown
    assert starec("--help") == 0
    assert "teach" in capsys.readouterr().out

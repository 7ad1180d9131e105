"""`starec reproduce`: what a recipe comes down to, and that it goes on where it was."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from starec.reproduce import RECIPES, SCALES, Step, compare, plan, read_recipe, reproduce, run
from starec_agents.serving.serve import ENGINES
from starec_env.data.commands import split as split_command
from starec_env.errors import InvalidOption, RunError, UnknownName
from starec_eval import paper
from starec_eval.commands import eval_command
from starec_eval.paper import TABLES, read_config
from starec_eval.rankers import BASELINES, LLM_METHODS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "starec" / "recipes"
ALL = [(recipe, scale) for recipe in RECIPES for scale in SCALES]
MODELS = tomllib.loads((FOLDER / "models.toml").read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_methods_and_models_that_there_are(name):
    recipe = read_recipe(name)
    assert recipe["title"] and recipe["rows"]
    for method in recipe["rows"].values():
        base, _, model = str(method).partition("@")
        assert base.removesuffix("-full") in BASELINES or base in LLM_METHODS
        assert not model or model in MODELS


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", RECIPES)
def test_each_model_is_made_before_it_is_asked_and_each_step_once(name, scale, tmp_path):
    steps = plan(name, scale, tmp_path)
    assert len({step.done for step in steps}) == len(steps)
    made = set()
    for step in steps:
        model = step.serve.get("model", "")
        if str(tmp_path) in model and "base" not in Path(model).name:
            assert any(model.startswith(str(folder)) for folder in made), (step.name, model)
        made.add(step.done.parent)
    *_, last = steps
    assert last.command[0] == "eval" and not last.serve
    assert all(f"{step.command[0]}" in {"train", "data", "eval"} for step in steps)


def written(steps: Sequence[Step]) -> None:
    for step in steps:
        for path, text in step.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.mark.parametrize(("recipe", "scale"), ALL)
def test_each_command_of_a_plan_is_one_that_starec_takes(recipe: str, scale: str, tmp_path: Path) -> None:
    steps = plan(recipe, scale, tmp_path)
    written(steps)
    assert len({step.done for step in steps}) == len(steps)
    for step in steps:
        assert not step.serve or step.serve["engine"] in ENGINES
        stage, *args = step.command
        if stage == "data":
            split_command.make_context("split", args[1:]).close()
        elif stage == "eval":
            eval_command.make_context("eval", list(args)).close()


@pytest.mark.parametrize("scale", SCALES)
def test_each_training_command_of_a_plan_is_one_that_starec_takes(scale: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs the 'train' extra")
    from starec_training import commands
    from starec_training.arguments import SftArguments, TeachArguments

    planned = {tuple(step.command) for recipe in RECIPES for step in plan(recipe, scale, tmp_path)}
    stages = [(stage, args) for kind, stage, *args in planned if kind == "train" and stage != "tiny"]
    assert {stage for stage, _ in stages} == {"teach", "sft", "grpo"}
    for stage, args in stages:
        if stage == "grpo":
            given, config = commands.grpo_settings(args)
            assert config.num_generations > 1 and given.split_file.startswith(str(tmp_path))
        elif stage == "sft":
            assert commands._parse(args, (SftArguments, trl.SFTConfig), stage, {"bf16": False})[0].rows
        else:
            assert commands._parse(args, (TeachArguments,), stage, {})[0].split_file.startswith(str(tmp_path))


@pytest.mark.parametrize(("recipe", "scale"), ALL)
def test_each_evaluation_of_a_plan_has_a_file_that_names_its_models_and_their_cards(
    recipe: str, scale: str, tmp_path: Path
) -> None:
    steps = plan(recipe, scale, tmp_path)
    written(steps)
    made = {str(Path(each)) for step in steps for each in step.command if str(each).startswith(str(tmp_path))}
    for step in steps:
        for path in step.files:
            config = read_config(path)
            assert paper._needed(config, list(config.tables), list(config.figures))
            assert all(data.split_file for data in config.datasets.values())
            folders = [folder for data in config.datasets.values() for folder in data.model_cards.values()]
            assert all(any(str(folder).startswith(out) for out in made) for folder in folders)


def test_a_recipe_of_a_table_has_its_rows_of_the_paper() -> None:
    for recipe in RECIPES:
        known = read_recipe(recipe)
        if "table" in known:
            wanted = 2 * len(TABLES[known["table"]][1])  # two data sets
            assert set(known["paper"]) == set(known["rows"])
            assert {len(figures) for figures in known["paper"].values()} == {wanted}


def test_the_hours_on_the_page_are_what_its_arithmetic_gives() -> None:
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "reproduce.md").read_text())
    prompts = 1000 * 18.4 * 2
    sampled, read, shared = prompts * 8 * 1360, prompts * 8 * 1400, prompts * 1400
    assert f"{prompts / 64:,.0f} steps of 64 prompts" in page
    assert f"{sampled / 1e9:.2f} billion tokens sampled, {(sampled + read) / 1e9:.2f} billion trained" in page
    operations = 8 * (sampled + read) + 2 * (sampled + shared)
    hours = [operations * size / 4e14 / 3600 for size in (0.49e9, 1.54e9, 7.62e9)]
    assert f"{hours[0]:.1f}, {hours[1]:.0f} and {hours[2]:.0f} hours of one H100" in page


def test_recipes_of_a_scale_share_what_both_need(tmp_path):
    table5, figure2a = ({step.done for step in plan(name, "tiny", tmp_path)} for name in ("table5", "figure2a"))
    assert {path.parent.name for path in table5 & figure2a} >= {
        "base",
        "ml-latest-small",
        "taught",
        "sft-1.5b",
        "rl-1.5b",
    }


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'table4'"):
        plan("table44", "tiny", tmp_path)
    with pytest.raises(InvalidOption, match="tiny"):
        plan("table4", "tin", tmp_path)
    with pytest.raises(UnknownName, match="ml-1m"):
        plan("table4", "paper", tmp_path, {"ml-1": tmp_path})


def test_the_plan_is_printed_as_a_shell_would_take_it(tmp_path):
    done = CliRunner().invoke(reproduce, ["table6", "--out", str(tmp_path / "r"), "--dry-run", "--port", "8199"])
    assert done.exit_code == 0, done.output
    assert "starec serve --model=r1 --engine=scripted --name=teacher --port=8199" in done.output
    assert "starec train grpo --model" in done.output and done.output.rstrip().endswith("--resume")
    done = CliRunner().invoke(reproduce, ["table6", "--scale", "paper", "--out", str(tmp_path / "r"), "--dry-run"])
    assert "fsdp.yaml" in done.output and "--tensor-parallel-size 8" in done.output
    assert not (tmp_path / "r").exists()


def steps_of(tmp_path, flags=()):
    first = Step("first", ["--version", *flags], tmp_path / "first.done.json")
    second = Step("second", ["--help"], tmp_path / "second.done.json", files={tmp_path / "second.txt": "settings"})
    return [first, second]


def test_finished_steps_are_not_run_again_and_other_settings_are_refused(tmp_path):
    said = []
    run(steps_of(tmp_path), said.append)
    assert said[0] == "2 steps, 0 of them done" and (tmp_path / "second.txt").read_text() == "settings"
    assert json.loads((tmp_path / "first.done.json").read_text())["command"] == ["--version"]
    said.clear()
    run(steps_of(tmp_path), said.append)
    assert said == ["2 steps, 2 of them done"]
    with pytest.raises(RunError, match="first was run with other settings: choose another folder"):
        run(steps_of(tmp_path, ["--nope"]), said.append)


def test_a_step_that_fails_stops_the_recipe_and_is_run_again(tmp_path):
    steps = steps_of(tmp_path)
    steps.insert(1, Step("broken", ["data", "split"], tmp_path / "broken.done.json"))
    with pytest.raises(RunError, match="broken ended with status .*goes on from here"):
        run(steps, lambda text: None)
    assert (tmp_path / "first.done.json").exists() and not (tmp_path / "second.done.json").exists()
    assert not (tmp_path / "broken.done.json").exists()


def test_measured_figures_stand_beside_the_papers(tmp_path):
    (tmp_path / "eval").mkdir()
    rows = [["STARec-RL-7B", "50.0 ± 1.0", "70.0 ± 1.0"], ["STARec-SFT-7B", "30.0 ± 1.0", "60.0 ± 1.0"]]
    table = {"title": "Table 6", "head": ["", "@1", "@10"], "rows": rows, "notes": []}
    (tmp_path / "eval" / "section5.json").write_text(json.dumps({"tables": [table], "figures": []}))
    text = compare("table6", tmp_path)
    assert "50.0 ± 1.0 (55.4)" in text and "70.0 ± 1.0 (77.16)" in text and compare("figure2a", tmp_path) == ""


@pytest.mark.reproduce
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_whole_at_the_tiny_scale(name, tmp_path_factory):
    out = tmp_path_factory.getbasetemp() / "tiny"  # shared, as recipes of a scale are meant to
    command = [
        sys.executable,
        "-m",
        "starec",
        "reproduce",
        name,
        "--scale",
        "tiny",
        "--out",
        str(out),
        "--port",
        "8198",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"written to {out / 'eval'}" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = len(plan(name, "tiny", out, port=8198))
    assert f"{steps} steps, {steps} of them done" in again.stdout

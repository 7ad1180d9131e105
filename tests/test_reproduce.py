"""Recipes: each plans at each scale, into commands and files that are accepted; steps are run once and in order."""

import json
import re
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

ROOT = Path(__file__).parents[1]
ALL = [(recipe, scale) for recipe in RECIPES for scale in SCALES]


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


def test_steps_run_once_in_order_and_are_refused_under_other_settings(tmp_path: Path) -> None:
    said: list[str] = []
    first = Step("first", ["--version"], tmp_path / "a" / "done.json", files={tmp_path / "a" / "it.toml": "x = 1\n"})
    wrong = Step("wrong", ["nothing"], tmp_path / "b" / "done.json")
    with pytest.raises(RunError, match="wrong ended with status"):
        run([first, wrong], said.append)
    assert (tmp_path / "a" / "it.toml").read_text() == "x = 1\n" and first.finished and not wrong.finished
    run([first], said.append)
    assert said[-1] == "1 steps, 1 of them done"
    with pytest.raises(RunError, match="was run with other settings"):
        run([Step("first", ["--help"], first.done)], said.append)


def test_what_is_asked_for_wrongly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'table4'"):
        plan("tabel4", "tiny", tmp_path)
    with pytest.raises(InvalidOption, match="scale"):
        plan("table4", "huge", tmp_path)
    with pytest.raises(UnknownName, match="data set of scale tiny"):
        plan("table4", "tiny", tmp_path, {"ml-1m": tmp_path})


def test_a_dry_run_prints_the_commands_and_makes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(reproduce, ["table6", "--scale", "paper", "--out", str(tmp_path / "x"), "--dry-run"])
    assert done.exit_code == 0 and not (tmp_path / "x").exists()
    assert done.output.count("starec train sft") == 6 and done.output.count("starec train grpo") == 6
    assert "fsdp.yaml" in done.output and "--tensor-parallel-size 8" in done.output


def test_figures_are_shown_beside_the_papers(tmp_path: Path) -> None:
    rows = [["STARec", "50.0 ± 1.3", "75.0 ± 0.9"], ["Reinforce++", "49.0 ± 1.3", "73.0 ± 0.9"]]
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "section5.json").write_text(json.dumps({"tables": [{"title": "Table 5", "rows": rows}]}))
    said = compare("table5", tmp_path)
    assert "50.0 ± 1.3 (51.3)  75.0 ± 0.9 (75.19)" in said and "49.0 ± 1.3 (49.5)" in said
    assert compare("figure2a", tmp_path) == ""

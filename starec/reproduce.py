"""`starec reproduce`: a table or figure of the paper's section 5, from the split to the numbers.

A recipe (recipes/table4.toml and so on) says which rows a table has and which models they ask; models.toml how each
model is made, scales.toml with which data, base models and settings. All of it comes down to ordinary commands, which
`--dry-run` prints. Recipes of one scale share a folder, so that what two tables need is made once.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from starec_env.errors import RunError, check_choice, unknown

_FOLDER = Path(__file__).with_name("recipes")
SCALES = ("paper", "small", "tiny")
RECIPES = ("table4", "table5", "table6", "figure2a", "figure2b")
_SERVE_FLAGS = ("model", "engine", "name", "port", "context")
PORT = 8123


@dataclass(frozen=True)
class Step:
    """One command, and the model that is served while it runs.

    `done` is the file that says that it has been run, and what it was: JSON with the command and the server.
    """

    name: str
    command: Sequence[str]
    done: Path
    serve: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `starec_agents.serving.serve.local_server`; empty where nothing is served."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """Files to write before it, with their text."""
    launcher: Sequence[str] = ()
    """What starts the command's module instead of Python, e.g. accelerate."""
    gpus: str = ""
    """CUDA_VISIBLE_DEVICES of the command, where a served model has the others."""

    def lines(self) -> Iterator[str]:
        """The step as a shell would take it."""
        if self.serve:
            flags = [f"--{key}={shlex.quote(str(value))}" for key, value in self.serve.items() if key in _SERVE_FLAGS]
            set_up = [f"{key}={value}" for key, value in self.serve.get("environment", {}).items()]
            extra = ["--", shlex.join(self.serve["extra"])] if "extra" in self.serve else []
            yield " ".join([*set_up, "starec serve", *flags, *extra, "&"])
        gpus = [f"CUDA_VISIBLE_DEVICES={self.gpus}"] if self.gpus else []
        start = [*self.launcher, "starec"] if self.launcher else ["starec"]
        yield " ".join([*gpus, shlex.join([*start, *self.command])])

    @property
    def record(self) -> dict[str, Any]:
        """What is compared when the step is met again."""
        files = {str(path): text for path, text in self.files.items()}
        return {"command": list(self.command), "serve": dict(self.serve), "files": files}

    @property
    def finished(self) -> bool:
        """Whether it has been run; raises RunError where another command was, under its name."""
        if not self.done.exists():
            return False
        done = json.loads(self.done.read_text(encoding="utf-8"))
        if {key: done.get(key) for key in self.record} != self.record:
            raise RunError(
                f"{self.done} says that {self.name} was run with other settings: choose another folder (--out), or "
                f"remove {self.done.parent}"
            )
        return True


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by its name; raises UnknownName."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return _toml(name)


def plan(name: str, scale: str, out: Path, data_dirs: Mapping[str, Path] | None = None, port: int = PORT) -> list[Step]:
    """The steps of a recipe, in order; those that other recipes of the same folder did are among them.

    Args:
        name: One of RECIPES.
        scale: One of SCALES.
        out: The folder of all recipes of this scale.
        data_dirs: Where data sets' files lie, by name, if not in the cache.
        port: Where models are served, one after another; the same whenever a recipe goes on, as runs record it.

    Raises:
        UnknownName: There is no such recipe, or a folder is given for a data set that the scale hasn't.
        InvalidOption: There is no such scale.
    """
    check_choice("scale", scale, SCALES)
    road = _Road(read_recipe(name), _toml("scales")[scale], out, data_dirs or {}, port)
    if foreign := [key for key in road.data_dirs if key not in road.scale["datasets"]]:
        raise unknown(f"data set of scale {scale}", foreign[0], road.scale["datasets"])
    return [*road.base(), *(step for data in road.scale["datasets"] for step in road.of_data(data)), road.last(name)]


@dataclass
class _Road:
    recipe: Mapping[str, Any]
    scale: Mapping[str, Any]
    out: Path
    data_dirs: Mapping[str, Path]
    port: int

    def base(self) -> list[Step]:
        """The random model of scale tiny."""
        if not any("{out}" in base for base in self.scale["bases"].values()):
            return []
        folder = self.out / "base"
        return [Step("base", ["train", "tiny", "--out", str(folder)], folder / "done.json")]

    def of_data(self, data: str) -> list[Step]:
        home, data_flags = self.out / data, self._data_flags(data)
        split = ["--split-file", str(home / "split.json")]
        steps = [
            Step(
                "split",
                ["data", "split", *data_flags, *self.scale["split"], "--out", str(home / "split.json")],
                home / "split.done.json",
            )
        ]
        for name in self._needed():
            steps += [step for step in self._made(name, home, [*data_flags, *split]) if step not in steps]
        for name in self._asked():
            steps += self._measured(data, name)
        return steps

    def _made(self, name: str, home: Path, shared: list[str]) -> list[Step]:
        model, folder = _models()[name], home / name
        if "stage" not in model:
            return []
        flags, done = [*self.scale[model["stage"]], *model.get("flags", ())], folder / "done.json"
        start = self._folder(model["from"], home) if "from" in model else self._base(model["base"])
        if model["stage"] == "sft":
            rows = home / "taught"
            command = ["train", "sft", "--model", start, "--rows", str(rows), *flags, "--out", str(folder)]
            return [self._taught(rows, shared), Step(name, command, done, launcher=self._launcher())]
        command = ["train", "grpo", "--model", start, *shared, *flags, "--out", str(folder)]
        served: Mapping[str, Any] = {}
        if rollouts := self.scale.get("rollouts"):
            served = {**self._server(model.get("from", ""), home, start), **rollouts}
        return [Step(name, command, done, served, launcher=self._launcher(), gpus=self.scale.get("train_gpus", ""))]

    def _launcher(self) -> list[str]:
        return [part.format(recipes=_FOLDER) for part in self.scale.get("launcher", ())]

    def _taught(self, rows: Path, shared: list[str]) -> Step:
        command = ["train", "teach", *shared, *self.scale["teach"], "--out", str(rows)]
        serve: Mapping[str, Any] = {}
        if "llm" in self.scale["teach"]:
            serve = self._server("teacher", rows.parent)
            command += ["--base-url", f"http://127.0.0.1:{self.port}/v1", "--model", serve["name"]]
        return Step("teacher", command, rows / "done.json", serve)

    def _server(self, name: str, home: Path, folder: str = "") -> dict[str, Any]:
        engine = self.scale.get("teacher_engine", self.scale["engine"]) if name == "teacher" else self.scale["engine"]
        folder = folder or self._folder(name, home)
        served = folder if engine == "transformers" else name or "base"
        extra = self.scale.get("serve_extra", {}).get(name)
        found = {"model": folder, "engine": engine, "name": served, "port": self.port, "context": self.scale["context"]}
        return {**found, "extra": extra} if extra else found

    def _folder(self, name: str, home: Path) -> str:
        model = _models()[name]
        if "stage" not in model:
            return self._base(model["base"])
        if model["stage"] == "sft":
            return str(home / name / "final")
        flags = [*self.scale["grpo"], *model.get("flags", ())]
        rounds = int(flags[flags.index("--rounds") + 1]) if "--rounds" in flags else 1
        return str(home / name / f"round-{rounds - 1}" / "train" / "final")

    def _base(self, name: str) -> str:
        return str(self.scale["bases"][name]).format(out=self.out)

    def _data_flags(self, data: str) -> list[str]:
        folder = self.data_dirs.get(data)
        return [*self.scale["datasets"][data], *(["--data-dir", str(folder)] if folder else [])]

    def _asked(self) -> list[str]:
        """Models that rows ask, in the recipe's order."""
        asked = (str(method).partition("@")[2] for method in self.recipe["rows"].values())
        return list(dict.fromkeys(name for name in asked if name))

    def _needed(self) -> list[str]:
        """Models that must be made for those, each after the one that it starts from."""
        found: list[str] = []
        for name in self._asked():
            line = [name]
            while "from" in _models()[line[0]]:
                line.insert(0, _models()[line[0]]["from"])
            found += [each for each in line if each not in found]
        return found

    def _measured(self, data: str, model: str) -> list[Step]:
        """What asks one model on one data set, while it is served."""
        rows = {label: method for label, method in self.recipe["rows"].items() if method.endswith(f"@{model}")}
        serve = self._server(model, self.out / data)
        steps = [self._eval(f"{self._key()}-{data}-{model}", [data], {"tables": {"4": rows}}, serve)]
        if rows.get("sampled"):  # best of N: the samples of Figure 2b
            steps.append(self._eval(f"{self._key()}-{data}-samples", [data], self._shown(), serve))
        return steps

    def _key(self) -> str:
        return str(self.recipe.get("table") or self.recipe["figure"])

    def _shown(self) -> dict[str, Any]:
        rows: dict[str, Any] = dict(self.recipe["rows"])
        if "table" in self.recipe:
            return {"tables": {self.recipe["table"]: rows}}
        if "samples" in self.scale["eval"] and "sampled" in rows:
            rows["samples"] = self.scale["eval"]["samples"]
        return {"figures": {self.recipe["figure"]: rows}}

    def last(self, name: str) -> Step:
        """The whole table or figure; all models have answered."""
        return self._eval(name, list(self.scale["datasets"]), self._shown(), {})

    def _eval(self, name: str, datasets: Sequence[str], shown: Mapping[str, Any], serve: Mapping[str, Any]) -> Step:
        config = self.out / "eval" / f"{name}.toml"
        ((kind, made),) = shown.items()
        command = ["eval", f"--{kind}", *made, "--config", str(config), "--out", str(self.out / "eval"), "--resume"]
        text = _to_toml({**self._section(datasets), **shown})
        return Step(f"eval {name}", command, config.with_suffix(".done.json"), serve, {config: text})

    def _section(self, datasets: Sequence[str]) -> dict[str, Any]:
        """What a configuration of section 5 says beside its rows."""
        asking = {key: value for key, value in self.scale["eval"].items() if key not in {"samples", "max_tokens"}}
        found: dict[str, dict[str, Any]] = {}
        for data in datasets:
            flags = self._data_flags(data)
            known = dict(zip(flags[::2], flags[1::2], strict=True))
            trained = [name for name in self._asked() if "stage" in _models()[name]]
            cards = {name: self._folder(name, self.out / data) for name in trained}
            found[known["--dataset"]] = {"split_file": str(self.out / data / "split.json"), "model_cards": cards}
            if folder := known.get("--data-dir"):
                found[known["--dataset"]]["path"] = folder
        served = {name: self._server(name, self.out / datasets[0])["name"] for name in self._asked()}
        url, most = f"http://127.0.0.1:{self.port}/v1", self.scale["eval"]["max_tokens"]
        endpoints = {name: {"base_url": url, "model": model, "max_tokens": most} for name, model in served.items()}
        return {**asking, "datasets": found, "endpoints": endpoints}


def run(steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Run steps in order, without those that are finished; a step that was stopped goes on where it was.

    Raises:
        RunError: A step failed, or its folder holds the work of other settings.
    """
    waiting = [step for step in steps if not step.finished]
    say(f"{len(steps)} steps, {len(steps) - len(waiting)} of them done")
    for number, step in enumerate(waiting, len(steps) - len(waiting) + 1):
        say("\n".join([f"[{number}/{len(steps)}] {step.name}", *(f"  {line}" for line in step.lines())]))
        for path, text in step.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        begun, start = time.monotonic(), step.launcher or [sys.executable, "-m"]
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": step.gpus} if step.gpus else {})}
        with _served(step.serve):
            done = subprocess.run([*start, "starec", *step.command], env=environment)
        if done.returncode:
            raise RunError(
                f"{step.name} ended with status {done.returncode}: see above. Once it is put right, the same "
                "`starec reproduce` goes on from here"
            )
        step.done.parent.mkdir(parents=True, exist_ok=True)
        took = {"seconds": round(time.monotonic() - begun)}
        step.done.write_text(json.dumps({**step.record, **took}, indent=1) + "\n", encoding="utf-8")


def _served(serve: Mapping[str, Any]) -> AbstractContextManager[Any]:
    if not serve:
        return nullcontext()
    from starec_agents.serving.serve import local_server

    return local_server(**serve)


def compare(name: str, out: Path) -> str:
    """A table as measured, each figure followed by the paper's; a recipe without the paper's figures has none."""
    recipe = read_recipe(name)
    if "paper" not in recipe:
        return ""
    made = json.loads((out / "eval" / "section5.json").read_text(encoding="utf-8"))["tables"][0]
    lines = [f"{made['title']}; in brackets the paper's"]
    for label, *cells in made["rows"]:
        paper = recipe["paper"].get(label, ())
        pairs = zip(cells, [*(f" ({figure})" for figure in paper), *[""] * len(cells)], strict=False)
        lines.append(f"{label:28}" + "  ".join(cell + beside for cell, beside in pairs))
    return "\n".join(lines)


@click.command()
@click.argument("recipe", type=click.Choice(RECIPES))
@click.option("--scale", type=click.Choice(SCALES), default="tiny", show_default=True, help="tiny: a rehearsal.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of all recipes  [default: runs/SCALE]")
@click.option("--data-dir", "data_dirs", multiple=True, metavar="NAME=DIR", help="Where a data set's files lie.")
@click.option("--port", default=PORT, show_default=True, help="Where models are served; the same when called again.")
@click.option("--dry-run", is_flag=True, help="Print the commands, and run none.")
def reproduce(recipe: str, scale: str, out: Path | None, data_dirs: Sequence[str], port: int, dry_run: bool) -> None:
    """Make a table or figure of the paper: split, teacher, SFT, GRPO, evaluation. Call again to go on.

    Example: starec reproduce table6 --scale tiny
    """
    out = (out or Path("runs") / scale).absolute()
    folders = {name: Path(folder).absolute() for name, _, folder in (each.partition("=") for each in data_dirs)}
    steps = plan(recipe, scale, out, folders, port)
    click.echo(f"{read_recipe(recipe)['title']}. {_toml('scales')[scale]['about']}")
    if dry_run:
        click.echo("\n".join(line for step in steps for line in step.lines()))
        return
    run(steps, click.echo)
    click.echo(f"{compare(recipe, out)}\nwritten to {out / 'eval'}")


def _models() -> dict[str, dict[str, Any]]:
    return _toml("models")


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def _to_toml(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """A table as TOML, whose keys, strings, numbers and lists may be written as JSON's."""
    plain = {key: each for key, each in value.items() if not isinstance(each, Mapping)}
    head = f"[{'.'.join(map(json.dumps, path))}]\n" if path and plain else ""
    own = head + "".join(f"{json.dumps(key)} = {json.dumps(each)}\n" for key, each in plain.items())
    tables = (each for each in value.items() if isinstance(each[1], Mapping))
    return own + "".join(_to_toml(table, (*path, key)) for key, table in tables)

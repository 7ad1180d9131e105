"""The options that say what data a command works on, the same for every command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from starec_env.completion import names_completer
from starec_env.data import NAMES
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split
from starec_env.errors import InvalidOption
from starec_env.reading import READINGS, Reading

HELP = {name: str(field.description) for name, field in DataSpec.model_fields.items()}
"""A line of help by option, for commands of any kind."""

_PATH = click.Path(exists=True, path_type=Path)
_KINDS: dict[str, Any] = {
    "dataset": {"metavar": "NAME|FILE", "shell_complete": names_completer(NAMES, files=True)},
    "data_dir": {"type": _PATH},
    "columns": {"multiple": True, "metavar": "ROLE=NAME,..."},
    "items": {"type": click.Path(exists=True, dir_okay=False, path_type=Path)},
    "domain": {"metavar": "NOUN"},
    "liked_above": {"type": float},
    "min_interactions": {"type": click.IntRange(min=1)},
    "max_length": {"type": click.IntRange(min=2)},
}
_DEFAULTS = {"domain": "guessed", "liked_above": "3, or what fits the format", "columns": "usual names are found"}


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options of `DataSpec`, and call it with `data`, the spec that they make."""

    @wraps(command)
    def called(*args: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in DataSpec.model_fields}
        return command(*args, data=data_spec(**given), **options)

    for name, field in reversed(DataSpec.model_fields.items()):
        default = _DEFAULTS.get(name, field.default)
        text = HELP[name] if default is None else f"{HELP[name]}  [default: {default}]"
        called = click.option(f"--{name.replace('_', '-')}", help=text, **_KINDS[name])(called)
    return called


_PREPARING = ("min_interactions", "max_length")
_OF_SPLIT = ("columns", "domain", "liked_above", *_PREPARING, "reading", "settings")


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that has `data_options` --reading and --set, and call it with `reading`, which they make."""

    @wraps(command)
    def called(*args: Any, data: DataSpec, reading: str, settings: tuple[str, ...], **options: Any) -> Any:
        return command(*args, data=data, reading=read_reading(reading, settings, data), **options)

    names = "; ".join(READINGS["default"].settings)
    called = click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", help=f"Change one setting of the reading: {names}."
    )(called)
    return click.option(
        "--reading",
        type=click.Choice(list(READINGS)),
        default="default",
        show_default=True,
        help="How to read what the paper leaves open.",
    )(called)


def read_reading(name: str, settings: Iterable[str], data: DataSpec | None = None) -> Reading:
    """A reading by name, with some settings changed; the filter and the length may be given as options of the data.

    Raises:
        InvalidOption: A setting is given twice, or its value is none.
        UnknownName: There is no such setting.
    """
    pairs = list(settings)
    for name_ in explicit(_PREPARING) if data else ():
        if any(pair.partition("=")[0] == name_ for pair in pairs):
            raise InvalidOption(f"--{name_.replace('_', '-')} and --set {name_}=... are the same: give one")
        pairs.append(f"{name_}={getattr(data, name_)}")
    return READINGS[name].with_settings(pairs)


class _SplitFile(click.Path):
    """A split file, or a trained model's starec.json."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, Split) else Split.load(str(super().convert(value, param, ctx)))


def split_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that has `data_options` --split-file, and call it with `split_file`, a `Split` or None.

    It goes below `data_options` and `reading_options`.
    With a split, `data` is what the split is of, and so is `reading`, where the command has one; of the options of the
    data only those that say where files are have an effect.
    """

    @wraps(command)
    def called(*args: Any, data: DataSpec, split_file: Split | None, **options: Any) -> Any:
        if split_file is not None:
            refuse(_OF_SPLIT, "with --split-file, which says what the data are")
            moved = DataSpec.of(**{name: getattr(data, name) for name in explicit(["dataset", "data_dir", "items"])})
            data = split_file.spec(moved)
            if "reading" in options:
                options["reading"] = split_file.reading
        return command(*args, data=data, split_file=split_file, **options)

    return click.option(
        "--split-file",
        type=_SplitFile(exists=True, dir_okay=False),
        help="Who trains and who is tested, of which data: from starec data split, or a trained model's starec.json.",
    )(called)


def data_spec(**given: Any) -> DataSpec:
    """The spec of options as a command line has them; what is None or empty takes its default.

    Raises:
        InvalidOption: A value is out of its range, or `columns` isn't ROLE=NAME, with commas between.
    """
    columns = given.pop("columns", None) or {}
    known = {name: value for name, value in given.items() if value is not None}
    return DataSpec.of(columns=read_columns(columns), **known)


def read_columns(text: str | Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Columns by role of one or several "user=u,item=i"; a name may hold a comma if no ROLE= follows it."""
    if isinstance(text, Mapping):
        return dict(text)
    pairs = [pair for part in ([text] if isinstance(text, str) else text) for pair in re.split(r",\s*(?=\w+=)", part)]
    found: dict[str, str] = {}
    for role, equals, name in (pair.partition("=") for pair in pairs):
        if not (equals and name.strip()) or role.strip() in found:
            raise InvalidOption(f"--columns {', '.join(pairs)}: wanted ROLE=NAME once each, as user=u,item=i,rating=r")
        found[role.strip()] = name.strip()
    return found


def explicit(names: Iterable[str]) -> list[str]:
    """Which of a click command's parameters were given on the command line."""
    context = click.get_current_context()
    line = click.core.ParameterSource.COMMANDLINE
    return [name for name in names if context.get_parameter_source(name) is line]


def refuse(names: Iterable[str], why: str) -> None:
    """Raise InvalidOption, which names them, if any of a click command's parameters was given: it has no effect."""
    if given := explicit(names):
        flags = {param.name: param.opts[0] for param in click.get_current_context().command.params}
        verb = "have" if len(given) > 1 else "has"
        raise InvalidOption(f"{', '.join(flags[name] for name in given)} {verb} no effect {why}: leave it out")

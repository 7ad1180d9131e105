"""The command line's option of the answer format, and its old spellings."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from starec_agents.tasks.rank import ANSWER_FORMATS, ranking_format


def format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --answer-format; "compact" and --structured still work, with a warning on stderr."""

    @wraps(command)
    def called(*args: Any, answer_format: str, structured: bool, **options: Any) -> Any:
        name = ranking_format(answer_format, structured).name
        if name != answer_format or structured:
            click.echo(f"starec: say --answer-format {name} now: the old spelling goes with the next release", err=True)
        return command(*args, answer_format=name, **options)

    helped = "Numbered titles with reasons after a thought; labels alone; or scores as JSON, held to a schema."
    choice = click.Choice((*ANSWER_FORMATS, "compact"))
    called = click.option("--structured/--free", default=False, hidden=True)(called)
    return click.option("--answer-format", type=choice, default="paper", show_default=True, help=helped)(called)

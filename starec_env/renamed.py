"""Old spellings of command-line flags, accepted for one release with a warning that names the new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


def renamed(args: Sequence[str], new_names: Mapping[str, str]) -> list[str]:
    """Arguments with old flags, also as --flag=value, spelled anew; each old one is warned of on stderr.

    What follows a bare "--" is left as it is.
    """
    args = list(args)
    end = args.index("--") if "--" in args else len(args)
    found = []
    for arg in args[:end]:
        flag, equals, value = arg.partition("=")
        if flag in new_names:
            click.echo(f"starec: {flag} is {new_names[flag]} now: the old name goes with the next release", err=True)
            arg = f"{new_names[flag]}{equals}{value}"
        found.append(arg)
    return found + args[end:]


class RenamingCommand(click.Command):
    """A command that takes old flags too.

    Args:
        old: New flags by old ones.
        options: Of `click.Command`.
    """

    def __init__(self, *args: Any, old: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.old = old

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, spelled anew."""
        return super().parse_args(ctx, renamed(args, self.old))

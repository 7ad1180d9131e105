"""What a shell completes beside flags: names of data sets, methods and graphs, and files where they may stand too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_completer(names: Iterable[str], *, files: bool = False, several: bool = False) -> Completer:
    """A `shell_complete` function for an option that takes names.

    Args:
        names: The names.
        files: Whether a path may stand in a name's place; paths are completed where no name begins so.
        several: Whether names may follow one another with commas between; the last is completed.
    """
    known = tuple(names)

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        found = [CompletionItem(before + comma + name) for name in known if name.startswith(last)]
        return found or ([CompletionItem(incomplete, type="file")] if files else [])

    return complete

"""What mkdocs calls while the site is built: pages made of other files, and links between them and these pages."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from starec_env.cli import starec
from starec_training.commands import OPTIONS, train

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "examples/nano/README.md": "nano.md",
}
"""Files outside this folder that are pages of the site, by their names there."""
_SOURCES = {page: source for source, page in PAGES.items()}
_FIGURE = re.compile(r"(?<=\d) (?=±|%)|(?<=±) (?=\d)")
"""Blanks within "1.5 ± 0.2 %"."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "commands.md", content="\n".join(_commands())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that are right in the repository to their targets on the site; keep tables' figures whole."""
    lines = (_FIGURE.sub("\N{NO-BREAK SPACE}", line) if line.startswith("|") else line for line in markdown.split("\n"))
    source = _SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = posixpath.dirname(page.file.src_uri)
    return _LINK.sub(lambda link: _relinked(link, posixpath.dirname(source), folder), "\n".join(lines))


def _relinked(link: re.Match[str], source: str, folder: str) -> str:
    """A link from a file in the folder `source` of the repository, for a page in the site's folder `folder`."""
    image, text, target, anchor = link.groups()
    path = posixpath.normpath(posixpath.join(source, target))
    if not (ROOT / path).exists():
        return link[0]  # mkdocs finds it broken
    page = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page is None:
        return f"`{path}`" if path.endswith(text.strip("/")) else f"{text} (`{path}`)"
    return f"{image}[{text}]({posixpath.relpath(page, folder or '.')}{anchor or ''})"


def _commands() -> Iterator[str]:
    yield "# Commands\n\nMade from the commands' own help, which `--help` shows too. Exit status 0 is success,"
    yield "130 Ctrl-C, 3 a run in which something failed or is unfinished, another number an error with its reason.\n"
    context = click.Context(starec, info_name="starec")
    for name in starec.list_commands(context):
        command = starec.get_command(context, name)
        assert command is not None
        yield from _command(command, click.Context(command, info_name=name, parent=context))


def _command(command: click.Command, context: click.Context, level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}\n"
    stage = OPTIONS.get(str(context.info_name)) if context.parent and context.parent.command is train else None
    if stage is not None:
        yield from _stage(command, stage)
    else:
        yield f"```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name, part in command.commands.items():
            yield from _command(part, click.Context(part, info_name=name, parent=context), level + 1)


def _stage(command: click.Command, options: Any) -> Iterator[str]:
    """A stage of training, whose options are a dataclass and TRL's."""
    yield f"{command.help}\n"
    yield "| option | default | |\n| --- | --- | --- |"
    for each in fields(options):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        shown = "" if default in (None, "", [], MISSING) else f"`{default}`"
        yield f"| `--{each.name.replace('_', '-')}` | {shown} | {_cell(each.metadata.get('help', ''))} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[")

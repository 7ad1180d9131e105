"""Build hook: the README as a package index can show it, where links into this repository would lead nowhere."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_IMAGE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


class ReadmeHook(MetadataHookInterface):
    """Sets the project's readme."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set it; called by hatchling."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": unlinked(text)}


def unlinked(text: str) -> str:
    """Markdown without pictures of the repository, and with its links into it as names of files."""
    return _LINK.sub(_named, _IMAGE.sub("", text))


def _named(link: re.Match[str]) -> str:
    text, target = link.groups()
    return f"`{target}`" if target.endswith(text) else f"{text} (`{target}`)"

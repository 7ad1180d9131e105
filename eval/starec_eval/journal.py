"""Records that grow line by line, so that a killed process can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starec_env.errors import RunError


class Journal:
    """A file of JSON lines: one of settings, then one for each thing done; a last line that was cut off is dropped.

    Args:
        path: The file; it is made, with its folder, or gone on with.
        settings: What a file that is there must have been made with.

    Attributes:
        lines: What was done before, without the settings.

    Raises:
        RunError: The file was made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.loads(json.dumps(settings, default=str))
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        found = [json.loads(line) for line in whole.splitlines()]
        if found and found[0] != head:
            different = [key for key in head if found[0].get(key) != head[key]]
            raise RunError(f"{path} was made with another {', '.join(different)}: choose another folder")
        self.lines: list[dict[str, Any]] = found[1:]
        self._file = open(path, "a", encoding="utf-8")
        self._file.truncate(len(whole))
        if not found:
            self.add(head)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

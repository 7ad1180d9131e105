"""Answers kept on disk, so that a repeated prompt costs nothing."""

import logging
import os
import sqlite3
from pathlib import Path

from pydantic import ValidationError

from starec_agents.llm.base import Completion
from starec_env.errors import InvalidOption


class AnswerCache:
    """Completions by key in one SQLite file, safe among threads and processes.

    A cache that breaks in mid-run (disk full, file locked for long) is logged once and then does nothing: a day's run
    mustn't end for want of a shortcut.

    Args:
        folder: Where the file `completions.sqlite` is or will be.

    Raises:
        InvalidOption: The folder or the file can't be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "completions.sqlite"
        self._broken = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connect()
            self._file.execute("CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, answer TEXT)")
        except (OSError, sqlite3.Error) as error:
            advice = "delete it or name another folder"
            raise InvalidOption(f"cache_dir: {self.path} can't be used ({error}); {advice}") from None

    def get(self, key: str) -> Completion | None:
        """The completion kept under a key, None if there is none or it is damaged; its latency is 0."""
        rows = self._run("SELECT answer FROM completions WHERE key = ?", key)
        try:
            return Completion.model_validate_json(rows[0][0]).model_copy(update={"latency": 0.0}) if rows else None
        except ValidationError:
            return None

    def put(self, key: str, answer: Completion) -> None:
        """Keep a completion under a key."""
        self._run("INSERT OR REPLACE INTO completions VALUES (?, ?)", key, answer.model_dump_json())

    def _run(self, command: str, *values: str) -> list[tuple[str]]:
        if self._broken:
            return []
        try:
            if self._process != os.getpid():  # a connection doesn't survive a fork
                self._connect()
            return self._file.execute(command, values).fetchall()
        except sqlite3.Error as error:
            self._broken = True
            logging.getLogger(__name__).warning("%s broke and is no longer used in this run: %s", self.path, error)
            return []

    def _connect(self) -> None:
        # Autocommit, and no wait for the disk: a power cut may lose the last answers, but never the file.
        self._file = sqlite3.connect(self.path, timeout=2, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._process = os.getpid()

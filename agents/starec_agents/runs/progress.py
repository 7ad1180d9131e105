"""A run's progress on stderr: a live bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from starec_agents.runs.rollout import News
from starec_agents.runs.store import RunStore

_LINE_EVERY_S = 30.0


class RunProgress:
    """Counts steps, tokens and failures as they come and shows them with rate and time left."""

    def __init__(self, *, total: int, visible: bool, store: RunStore) -> None:
        console = Console(stderr=True)
        self._store, self._visible = store, visible
        self._lines = visible and not console.is_terminal
        self._total, self._users, self._steps, self._tokens = total, 0, 0, 0
        self._started = self._shown = time.monotonic()
        self._bar = Progress(
            TextColumn("users"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not visible or self._lines,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("users", total=total, text="")

    def add(self, news: News) -> None:
        """Count what was done, and record who failed; raises RunError where the folder is no longer the run's."""
        self._store.check_place()
        for failure in news.failures:
            self._store.fail(failure)
        self._steps += news.steps
        self._tokens += news.tokens
        self._users += news.users
        self._bar.advance(self._task, news.users)
        self._refresh()

    def _text(self, now: float) -> str:
        rate = self._steps / max(now - self._started, 1e-9)
        return f"{self._steps} steps, {rate:.1f}/s, {self._tokens:,} tokens, {len(self._store.failures)} failed"

    def _refresh(self) -> None:
        now = time.monotonic()
        if not self._visible or now - self._shown < (_LINE_EVERY_S if self._lines else 0.2):
            return
        self._shown = now
        if self._lines:
            spent = now - self._started
            left = spent / self._users * (self._total - self._users) if self._users else float("nan")
            self._bar.console.print(f"{self._users}/{self._total} users, {self._text(now)}, about {left:.0f} s left")
        else:
            self._bar.update(self._task, text=self._text(now))

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._task, text=self._text(time.monotonic()))
        self._bar.stop()

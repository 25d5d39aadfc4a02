"""Tells a person what a build is doing: a bar for work under way where stderr is a terminal, one line for each stage that is done.

Knows nothing of what the stages do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Stage:
    """One stage under way. `notes` end up in its line."""

    def __init__(self, bars: Progress | None, title: str) -> None:
        self.notes: list[str] = []
        self._bars = bars
        self._task = bars.add_task(title, total=None, what="") if bars else None

    def advance(self, done: int, total: int, what: str = "") -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, what=what[-60:])

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)


class Stages:
    """bars: shown while a stage runs, if stderr is a terminal. lines: one for each stage that is done."""

    def __init__(self, *, bars: bool = False, lines: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._shows_bars, self._shows_lines = bars and self._console.is_terminal, lines

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        started = time.perf_counter()
        with self._bars() as bars:
            stage = Stage(bars, title)
            yield stage
            stage.close()
        if self._shows_lines:
            self._console.print(f"{title:<9} {time.perf_counter() - started:6.1f} s   {'; '.join(stage.notes)}", markup=False)

    def tell(self, text: str) -> None:
        """A line of its own, where lines are shown."""
        if self._shows_lines:
            self._console.print(text, markup=False)

    @contextmanager
    def _bars(self) -> Iterator[Progress | None]:
        if not self._shows_bars:
            yield None
            return
        columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}", style="dim"))
        with Progress(*columns, console=self._console, transient=True) as bars:
            yield bars

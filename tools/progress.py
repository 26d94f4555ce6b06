"""Progress on stderr: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ..passes.engine.pipeline.progress import Bar, Progress, Stage
from .time_left import TimeLeft

_QUIET_SECONDS = 20.0  # between two plain lines about the same work


_MOVING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def plain(text: str) -> str:
    """Returns ``text`` with whatever moves a cursor or turns the line around as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in _MOVING else one
        for one in text
    )


class EscapedStream:
    """A text stream that shows only lines of plain text: libraries log names as they are.

    Attributes:
        terminal: The stream below, for what draws bars.
    """

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        """Writes ``text``, line by line."""
        self.terminal.write("\n".join(map(plain, text.split("\n"))))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes ``lines``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


class PlainProgress(Progress):
    """Says when work begins and ends, and how far it is every twenty seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._left = TimeLeft()

    def begin(self, stage: Stage) -> None:
        self._left.begin(stage)
        self.say(f"{self._left.place}: {stage.name}")

    @contextmanager
    def bar(self, what: str, items: int | None, work: float | None = None) -> Iterator[Bar]:
        bar = _Lines(what, items, work, self._left, self.say)
        yield bar
        self.say(f"{what}: done in {bar.seconds():.1f} s")

    def say(self, text: str) -> None:
        """Shows ``text``."""
        stream = self._stream or sys.stderr
        for line in map(plain, text.splitlines()):
            try:
                print(line, file=stream, flush=True)
            except UnicodeEncodeError:  # LANG=C, cp1252
                encoding = getattr(stream, "encoding", None) or "ascii"
                print(
                    line.encode(encoding, "replace").decode(encoding), file=stream, flush=True
                )


class _Lines:
    """A bar of lines, one now and then."""

    def __init__(
        self,
        what: str,
        items: int | None,
        work: float | None,
        left: TimeLeft,
        say: Callable[[str], None],
    ) -> None:
        self._what, self._items, self._left, self._say = what, items, left, say
        self._work = work if work is not None else float(items or 0)
        self._count, self._done = 0, 0.0
        self._begun = self._last = time.monotonic()
        left.begin_bar()

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def advance(self, work: float = 1.0) -> None:
        self._count += 1
        self._done += work
        if self._work:
            self._left.advance(self._done / self._work)
        if time.monotonic() - self._last <= _QUIET_SECONDS:
            return
        self._last = time.monotonic()
        parts = [f"{self._count}" + (f" of {self._items}" if self._items else " so far")]
        if self._work:
            parts.append(f"{min(self._done / self._work, 1.0):.0%}")
        parts.append(f"{self.seconds():.0f} s")
        text = self._left.text()
        self._say(f"{self._what}: {', '.join(parts)}" + (f"; {text}" if text else ""))


class BarProgress(Progress):
    """Bars, by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        terminal = getattr(sys.stderr, "terminal", sys.stderr)
        self._console = Console(file=terminal, highlight=False)
        self._left = TimeLeft()

    def begin(self, stage: Stage) -> None:
        self._left.begin(stage)

    @contextmanager
    def bar(self, what: str, items: int | None, work: float | None = None) -> Iterator[Bar]:
        from rich import progress
        from rich.text import Text

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[count]}", markup=False),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[left]}", markup=False),
        )
        whole = work if work is not None else items
        with progress.Progress(*columns, console=self._console) as bars:
            self._left.begin_bar()
            name, left = Text(plain(what)).plain, self._left.text()
            task = bars.add_task(name, total=whole, count=_counted(0, items), left=left)
            yield _RichBar(bars, task, items, self._left)

    def say(self, text: str) -> None:
        """Shows ``text``."""
        from rich.text import Text

        for line in text.splitlines():
            self._console.print(Text(plain(line)))


class _RichBar:
    """One line of rich's bars."""

    def __init__(self, bars: Any, task: Any, items: int | None, left: TimeLeft) -> None:
        self._bars, self._task, self._items, self._left = bars, task, items, left
        self._count = 0

    def advance(self, work: float = 1.0) -> None:
        self._count += 1
        self._bars.advance(self._task, work)
        task = self._bars.tasks[0]
        if task.total:
            self._left.advance(task.completed / task.total)
        counted = _counted(self._count, self._items)
        self._bars.update(self._task, count=counted, left=self._left.text())


def _counted(count: int, items: int | None) -> str:
    return str(count) if items is None else f"{count}/{items}"


def choose_progress() -> PlainProgress | BarProgress:
    """Returns bars where stderr is a terminal, plain lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()

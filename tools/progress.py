"""Progress on stderr: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

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


class PlainProgress:
    """Says when work begins and ends, and how far it is every twenty seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def track(self, items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        """Yields ``items``."""
        begun = last = time.monotonic()
        for at, item in enumerate(items):
            yield item
            if time.monotonic() - last > _QUIET_SECONDS:
                last = time.monotonic()
                self.say(f"{what}: {at + 1} of {total}, {last - begun:.0f} s")
        self.say(f"{what}: done in {time.monotonic() - begun:.1f} s")

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


class BarProgress:
    """Bars, by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        terminal = getattr(sys.stderr, "terminal", sys.stderr)
        self._console = Console(file=terminal, highlight=False)

    def track(self, items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        """Yields ``items`` and shows a bar called ``what``."""
        from rich import progress
        from rich.text import Text

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
        )
        with progress.Progress(*columns, console=self._console) as bars:
            task = bars.add_task(Text(plain(what)).plain, total=total)
            for item in items:
                yield item
                bars.advance(task)

    def say(self, text: str) -> None:
        """Shows ``text``."""
        from rich.text import Text

        for line in text.splitlines():
            self._console.print(Text(plain(line)))


def choose_progress() -> PlainProgress | BarProgress:
    """Returns bars where stderr is a terminal, plain lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()

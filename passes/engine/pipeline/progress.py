"""Where passes tell how far they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Stage:
    """A pass that begins.

    Attributes:
        place: Its place in the pipeline, from 0.
        name: Its name.
        expected: Seconds that every pass of the pipeline is expected to take on some machine,
            of which only the ratios count; empty while nothing is known.
        count: How many passes there are.
    """

    place: int
    name: str
    expected: tuple[float, ...]
    count: int


class Bar(Protocol):
    """Some work that can be counted."""

    def advance(self, work: float = 1.0) -> None:
        """Is told that one more item is done.

        Args:
            work: What it took, in the unit of the work that was announced.
        """
        ...


class Progress(ABC):
    """Shows how far passes are."""

    @abstractmethod
    def bar(
        self, what: str, items: int | None, work: float | None = None
    ) -> AbstractContextManager[Bar]:
        """Shows a bar for as long as the context lasts.

        Args:
            what: What the user is told meanwhile.
            items: How many items there are; None if nobody can tell.
            work: The work of all items, in any unit; by default as much as there are items.
        """

    @abstractmethod
    def say(self, text: str) -> None:
        """Shows one line."""

    def begin(self, stage: Stage) -> None:
        """Is told that a pass begins; says nothing of it unless a subclass does."""
        del stage

    def track(self, items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        """Yields ``items``, all of which take the same, and shows a bar called ``what``."""
        with self.bar(what, total) as bar:
            for item in items:
                yield item
                bar.advance()


class _Nothing:
    def advance(self, work: float = 1.0) -> None:
        pass


class SilentProgress(Progress):
    """A Progress that shows nothing."""

    def bar(
        self, what: str, items: int | None, work: float | None = None
    ) -> AbstractContextManager[Bar]:
        return nullcontext(_Nothing())

    def say(self, text: str) -> None:
        pass

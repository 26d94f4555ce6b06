"""What must be undone when a signal ends the process, where no ``finally`` can be relied on.

An exception raised by a signal handler is lost if it lands in a finalizer or in a library that
catches everything; so the handler calls ``undo_all`` and ends the process itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PENDING: list[Callable[[], object]] = []


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Calls ``undo`` after the block, or before the process ends if a signal ends it there.

    If ``undo`` itself fails, for instance because memory ran out, it stays to be undone later.
    """
    _PENDING.append(undo)
    try:
        yield
    finally:
        undo()
        _PENDING.remove(undo)


def undo_all() -> None:
    """Calls everything that is still to be undone, innermost first; nothing stops it."""
    while _PENDING:
        with suppress(Exception):
            _PENDING.pop()()

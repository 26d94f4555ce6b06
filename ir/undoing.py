"""What must be undone when a signal ends the process, where no ``finally`` can be relied on.

An exception raised by a signal handler is lost if it lands in a finalizer or in a library that
catches everything; so the handler calls ``undo_all`` and ends the process itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PENDING: list[Callable[[], object]] = []
_FAILED: list[Callable[[], object]] = []  # for want of memory


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Calls ``undo`` after the block, or before the process ends if a signal ends it there.

    If there is too little memory even for that, ``retry`` does it once memory is free again.
    """
    _PENDING.append(undo)
    try:
        yield
    finally:
        _PENDING.remove(undo)
        try:
            undo()
        except MemoryError:
            _FAILED.append(undo)
            raise


def retry() -> None:
    """Calls again what failed for want of memory."""
    _call_all(_FAILED)


def undo_all() -> None:
    """Calls everything that is still to be undone, innermost first; nothing stops it."""
    _call_all(_PENDING)
    retry()


def _call_all(undos: list[Callable[[], object]]) -> None:
    while undos:
        with suppress(Exception):
            undos.pop()()

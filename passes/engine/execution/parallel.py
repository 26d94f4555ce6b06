"""The same work on many units, on all cores, with results that their number cannot change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

import torch

from ..pipeline.progress import Progress
from .devices import CPU
from .memory import available_memory

A = TypeVar("A")
B = TypeVar("B")
_SHARE = 0.6  # of what is free; the rest is for what estimates leave out


def for_each(
    function: Callable[[A], B],
    items: Sequence[A],
    progress: Progress,
    what: str,
    *,
    need: Callable[[A], int] | None = None,
    device: str = CPU,
    cost: Callable[[A], float] | None = None,
) -> list[B]:
    """Returns ``[function(item) for item in items]``.

    Every call computes on one torch thread, so the order of sums is the same on any machine.
    The dearest items go first: one that came last would keep one core busy alone.

    Args:
        function: What to do with one item.
        items: The items.
        progress: Where to show progress.
        what: What the user is told meanwhile.
        need: Estimates the bytes that a call takes while it runs. Calls wait where memory has
            no room for all cores; what is larger than all of it runs alone.
        device: What calls compute on. One unit fills an accelerator, so that there they come
            one after the other.
        cost: Estimates what a call takes, in any unit; by default as ``need``.
    """
    weigh = cost or need or (lambda _: 1)
    costs = [max(float(weigh(item)), 1.0) for item in items]
    if device != CPU:
        return _in_turn(function, items, costs, progress, what)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    room = _Room(available_memory())

    def work(item: A) -> B:
        with room.of(need(item) if need is not None else 0):
            return function(item)

    queue = sorted(range(len(items)), key=lambda at: -costs[at])
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        with progress.bar(what, len(items), sum(costs)) as bar:
            running = {pool.submit(work, items[at]): at for at in queue}
            results = {}
            for done in as_completed(running):
                results[running[done]] = done.result()
                bar.advance(costs[running[done]])
        return [results[at] for at in range(len(items))]
    finally:
        # On Ctrl-C the items that wait must not run to their end first.
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _in_turn(
    function: Callable[[A], B],
    items: Sequence[A],
    costs: Sequence[float],
    progress: Progress,
    what: str,
) -> list[B]:
    results = []
    with progress.bar(what, len(items), sum(costs)) as bar:
        for item, cost in zip(items, costs, strict=True):
            results.append(function(item))
            bar.advance(cost)
    return results


class _Room:
    """Memory that calls share."""

    def __init__(self, free: int | None) -> None:
        self._limit = None if free is None else int(_SHARE * free)
        self._taken = 0
        self._changed = Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Waits until there is room, or nobody else."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(size))
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._limit is None or not self._taken or self._taken + size <= self._limit

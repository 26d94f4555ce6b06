"""Pieces of work side by side in threads, with results in their order and few at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from .devices import CPU
from .memory import available_memory

A = TypeVar("A")
B = TypeVar("B")
Step = Callable[[float], object]  # is told of work that is done
_SHARE = 0.6  # of what is free; the rest is for what estimates leave out
_SECONDS = 0.2  # between two looks at how far the threads are


def in_order(
    function: Callable[[A, Step], B],
    items: Sequence[A],
    step: Step,
    *,
    need: int = 0,
    device: str = CPU,
) -> Iterator[B]:
    """Yields ``function(item, step)`` for every item, in their order.

    Every call computes on one torch thread, so the order of sums is the same on any machine.
    No more results wait to be taken than there are cores.

    Args:
        function: What to do with one item; it may call its second argument from its thread.
        items: The items.
        step: Called, in the thread of the caller, with what ``function`` calls its own with.
        need: Bytes that a call takes while it runs and until its result is taken.
        device: What calls compute on. An accelerator takes them one after the other.
    """
    if device != CPU:
        yield from (function(item, step) for item in items)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cores, free = os.cpu_count() or 1, available_memory()
    if need and free is not None:
        cores = max(1, min(cores, int(_SHARE * free) // need))
    steps: SimpleQueue[float] = SimpleQueue()
    pool, running, todo = ThreadPoolExecutor(cores), deque[Future[B]](), deque(items)
    try:
        while todo or running:
            while todo and len(running) < cores:
                running.append(pool.submit(function, todo.popleft(), steps.put))
            while not wait([running[0]], _SECONDS).done:
                _take(steps, step)
            _take(steps, step)
            yield running.popleft().result()
    finally:
        # On Ctrl-C the items that wait must not run to their end first.
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _take(steps: SimpleQueue[float], step: Step) -> None:
    """Passes on the steps that threads have taken."""
    while True:
        try:
            taken = steps.get_nowait()
        except Empty:
            return
        step(taken)

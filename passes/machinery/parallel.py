"""The same work on many units, on all cores, with results that their number cannot change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from .base import Progress

A = TypeVar("A")
B = TypeVar("B")


def for_each(
    function: Callable[[A], B], items: Sequence[A], progress: Progress, what: str
) -> list[B]:
    """Returns ``[function(item) for item in items]``.

    Every call computes on one torch thread, so the order of sums is the same on any machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        return list(progress.track(pool.map(function, items), len(items), what))
    finally:
        # On Ctrl-C the items that wait must not run to their end first.
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)

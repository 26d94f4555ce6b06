"""How loops are compiled for the processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compiles a function when it is first called, and keeps the result where it can.

    The interpreter's lock is free while it runs. Sums may be taken in another order, several
    at a time; nothing else is loosened. What is compiled is kept beside the function's file or
    in the user's cache. Where neither can be written, each process compiles anew, which takes
    some seconds.
    """
    chosen: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "nsz"},
    }
    try:
        made = numba.njit(cache=True, **chosen)(function)
    except RuntimeError:
        made = numba.njit(**chosen)(function)
    kept: Callable[..., None] = made
    return kept

"""How much memory there is, and giving it back between passes."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Returns the bytes that can still be taken, or None where the system does not tell.

    Inside a container it is what the container may still take, if that is less.
    """
    found = [one for one in (_of_system(), _of_container()) if one is not None]
    return min(found, default=None)


def _of_system() -> int | None:
    try:
        text = _SYSTEM.read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _of_container() -> int | None:
    try:
        most = (_CONTAINER / "memory.max").read_text().strip()
        taken = int((_CONTAINER / "memory.current").read_text())
        cached = re.search(
            r"^inactive_file (\d+)$", (_CONTAINER / "memory.stat").read_text(), re.MULTILINE
        )
        return max(int(most) - taken + (int(cached[1]) if cached else 0), 0)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return None


def return_freed_memory() -> None:
    """Hands memory that is free already back to the system, where the C library can be asked.

    glibc keeps what threads have freed in arenas of their own. After rounding a model of 135 M
    weights that is 0.7 GB, which the runtime needs for the proof.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

"""How much memory can still be taken."""

from __future__ import annotations

import re
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

"""How much memory can still be taken."""

from __future__ import annotations

import re
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_PROCESS = Path("/proc/self/statm")
_CONTAINER = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Returns the bytes that can still be taken, or None where the system does not tell.

    Inside a container it is what the container may still take, if that is less, and under
    ``ulimit -v`` what this process may.
    """
    found = [one for one in (_of_system(), _of_container(), _of_process()) if one is not None]
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


def _of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(_PROCESS.read_text().split()[0])
    except (OSError, ValueError):
        return None
    return max(most - pages * resource.getpagesize(), 0)


def held_memory() -> int | None:
    """Returns the bytes of memory that this process holds, mapped files apart.

    None where the system does not tell.
    """
    return held_by("self")


def held_by(process: int | str) -> int | None:
    """Returns the same of any process, by its number."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    match = re.search(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None

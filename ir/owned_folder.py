"""Folders for unfinished files, which belong to one process for as long as it lives.

The owner holds a lock that the system releases however the process ends, so any other process
can tell what was abandoned and remove it. Process numbers would not do: they are used again,
and containers that share a folder each count from one.
"""

from __future__ import annotations

import fcntl
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import MachineError
from .undoing import undone

_LOCK = ".lock"
_PREFIX = ".mpqc-"
_MOST_TRIES = 100


def claim(folder: Path) -> int | None:
    """Makes or enters ``folder`` and takes possession of it.

    Returns:
        What ``release`` needs; None if a living process owns the folder.
    """
    for _ in range(_MOST_TRIES):
        made = _make(folder)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # its last owner has just removed it
            continue
        except OSError:
            if made:
                folder.rmdir()
            raise
        if not _is_locked(lock, made):
            os.close(lock)
            return None
        if _is_in_place(lock, folder):
            return lock
        os.close(lock)
    return None


def release(folder: Path, lock: int) -> None:
    """Removes a folder that this process has claimed."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    with suppress(OSError):  # on NFS an open file stays until now; elsewhere all is gone
        folder.rmdir()


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Gives a new folder that is removed afterwards; by a later process if this one is killed.

    Args:
        parent: Where to make it; by default where the system keeps temporary files.

    Raises:
        MachineError: There is nowhere to keep temporary files.
    """
    place = parent if parent is not None else _system_folder()
    _remove_abandoned(place)
    while True:
        folder = place / f"{_PREFIX}{secrets.token_hex(8)}"
        lock = claim(folder)
        if lock is not None:
            break
    with undone(functools.partial(release, folder, lock)):
        yield folder


def _make(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _is_locked(lock: int, made: bool) -> bool:
    """Tries to lock; on a file system without locks only a new folder is certainly ours."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return made
    return True


def _is_in_place(lock: int, folder: Path) -> bool:
    """Tells whether the file that was locked is still the folder's."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK))
    except FileNotFoundError:
        return False


@functools.cache  # once per process: the system's folder may have very many entries
def _remove_abandoned(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = claim(folder)
            if lock is not None:
                release(folder, lock)


def _system_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise MachineError(
            f"nowhere to keep temporary files: {error.strerror}",
            hint="set TMPDIR to a folder that can be written",
        ) from error

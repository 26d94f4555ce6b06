"""Files that appear whole or not at all, and survive a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .owned_folder import temporary_folder


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of ``path`` only if the block ends well.

    Until then it lies in a temporary folder beside ``path``, which is the file's parent.

    Args:
        path: The file.
        lasting: Whether it has to survive a power cut; if not, nobody waits for the disk.
    """
    with temporary_folder(path.parent) as folder:
        staged = folder / path.name
        with staged.open("w+b") as file:
            yield file
            file.flush()
        if lasting:
            put_in_place(staged, path)
        else:
            os.replace(staged, path)


def put_in_place(staged: Path, path: Path) -> None:
    """Renames a complete file to ``path`` so that not even a power cut leaves half of it."""
    sync(staged)
    os.replace(staged, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file or folder survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)

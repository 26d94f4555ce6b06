"""Failures of the file system while something is written, as the machine's fault."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MachineError

_HINTS = {
    errno.ENOSPC: "the disk is full; free some space or {instead}",
    errno.EDQUOT: "the disk quota is used up; free some space or {instead}",
    errno.EFBIG: "a file grew beyond the allowed size (see: ulimit -f)",
    errno.EROFS: "the file system is read-only; {instead}",
    errno.EACCES: "no permission to write there; {instead}",
    errno.EPERM: "no permission to write there; {instead}",
    errno.EMFILE: "too many open files (see: ulimit -n)",
    errno.EIO: "the disk reports an input/output error",
    errno.EEXIST: "a part of the path is a file; {instead}",
    errno.ENOTDIR: "a part of the path is a file; {instead}",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_ALWAYS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@contextmanager
def machine_errors(path: Path, instead: str = "choose another output") -> Iterator[None]:
    """Turns failures of the file system while writing ``path`` into MachineError.

    Args:
        path: What is written; errors about unrelated places pass through.
        instead: What the user could do instead, for the hint.
    """
    try:
        yield
    except OSError as error:
        code = _errno_of(error, path)
        if code not in _HINTS:
            raise
        raise MachineError(
            f"cannot write {path}: {os.strerror(code)}",
            hint=_HINTS[code].format(instead=instead),
        ) from error


def _errno_of(error: OSError, path: Path) -> int | None:
    """Returns the errno if ``error`` is about the place that ``path`` is written to."""
    if error.errno is None and "requested and" in str(error):  # how numpy reports a full disk
        return errno.ENOSPC
    if error.errno in _ALWAYS or error.filename is None:
        return error.errno
    named = Path(os.path.abspath(os.fsdecode(error.filename)))
    return error.errno if named.is_relative_to(Path(os.path.abspath(path)).parent) else None

"""What native libraries write past Python, straight to the process's error stream."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_STDERR = 2
_LIBRARY = re.compile(r"([\w.+-]+\.(?:so[\w.]*|dll)): cannot open shared object file")


class NativeLog:
    """What was written, once the context has been left.

    Attributes:
        text: All of it.
    """

    text = ""

    @property
    def missing_library(self) -> str:
        """The library that the system's loader did not find; empty if it said nothing."""
        found = _LIBRARY.search(self.text)
        return found[1] if found else ""


@contextlib.contextmanager
def native_log() -> Iterator[NativeLog]:
    """Keeps from the terminal what is written to the error stream, whoever writes it.

    A process that was started without an error stream has nothing to keep.
    """
    log = NativeLog()
    with contextlib.ExitStack() as stack:
        try:
            kept = os.dup(_STDERR)
        except OSError:
            yield log
            return
        stack.callback(os.close, kept)
        file = stack.enter_context(tempfile.TemporaryFile())
        sys.stderr.flush()
        os.dup2(file.fileno(), _STDERR)
        try:
            yield log
        finally:
            sys.stderr.flush()
            os.dup2(kept, _STDERR)
            file.seek(0)
            log.text = file.read().decode("utf-8", "replace")

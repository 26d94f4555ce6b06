"""What a failure is called: the error's kind, its message and hint, and the exit code."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from .progress import plain

# How libraries say it that raise no MemoryError: torch, the system's loader, threads.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "can't start new thread",
    "failed to map segment",
)


def tell(error: Exception) -> int:
    """Prints a failure to stderr; returns the exit code."""
    _, message, hint, exit_code = account(error)
    print(f"mpqc: {plain(message)}", file=sys.stderr)
    if hint:
        print(f"      {plain(hint)}", file=sys.stderr)
    return exit_code


def account(error: Exception) -> tuple[str, str, str, int]:
    """Returns kind, message, hint and exit code of a failure."""
    from ..ir.errors import MpqcError

    if isinstance(error, OSError):
        error = _of_machine(error)
    if _is_out_of_memory(error):
        return "environment", "out of memory", "use fewer or shorter samples", 4
    if isinstance(error, MpqcError):
        return error.code, error.message, error.hint, error.exit_code
    kind, line = type(error).__name__, " ".join(str(error).split())
    return (
        "internal",
        f"{kind}: {line}",
        "this is our bug; --debug shows where it happened",
        70,
    )


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Tells whether the machine's memory ran out, under whatever name."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, (RuntimeError, ImportError)):
            text = str(error).lower()
            if any(one in text for one in _OUT_OF_MEMORY):
                return True
        error = error.__cause__
    return False


def _of_machine(error: OSError) -> Exception:
    """Returns the MachineError that a full disk and the like mean, or ``error`` itself."""
    from ..ir.errors import MachineError
    from ..ir.machine_errors import machine_errors

    try:
        with machine_errors(Path(error.filename or "a file")):
            raise error
    except (MachineError, OSError) as known:
        return known

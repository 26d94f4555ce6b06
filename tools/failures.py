"""What a failure is called: the error's kind, its message and hint, and the exit code."""

from __future__ import annotations

from pathlib import Path


def account(error: Exception) -> tuple[str, str, str, int]:
    """Returns kind, message, hint and exit code of a failure."""
    from ..ir.errors import MpqcError

    if isinstance(error, OSError):
        error = _of_machine(error)
    if isinstance(error, MpqcError):
        return error.code, error.message, error.hint, error.exit_code
    if isinstance(error, MemoryError):
        return "environment", "out of memory", "use fewer or shorter samples", 4
    kind, line = type(error).__name__, " ".join(str(error).split())
    return (
        "internal",
        f"{kind}: {line}",
        "this is our bug; --debug shows where it happened",
        70,
    )


def _of_machine(error: OSError) -> Exception:
    """Returns the MachineError that a full disk and the like mean, or ``error`` itself."""
    from ..ir.errors import MachineError
    from ..ir.staging import machine_errors

    try:
        with machine_errors(Path(error.filename or "a file")):
            raise error
    except (MachineError, OSError) as known:
        return known

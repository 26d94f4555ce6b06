"""The errors that mpqc raises on purpose: one class per exit code."""

from __future__ import annotations

from typing import ClassVar


class MpqcError(Exception):
    """A refusal with its cause in one line and, if known, a step that would work.

    Attributes:
        message: What went wrong and where, in one line.
        hint: A step that would work instead; empty if none is known.
        exit_code: The exit code of the command line.
        code: The stable name of the kind, for ``--json``.
    """

    exit_code: ClassVar[int] = 70
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MpqcError):
    """The caller asked for something that does not exist or contradicts itself."""

    exit_code = 2
    code = "usage"


class InputError(MpqcError):
    """A model, text or array that is broken, unsafe or of the wrong kind."""

    exit_code = 3
    code = "input"


class MachineError(MpqcError):
    """The machine lacks something: space, memory, a package, a provider."""

    exit_code = 4
    code = "environment"


class InfeasibleBudget(MpqcError):
    """No choice of options fits the budget; the message names the smallest that does.

    Attributes:
        smallest: The smallest budget that works, in stored bits per weight, if it is known.
    """

    exit_code = 5
    code = "infeasible-budget"

    def __init__(self, message: str, *, hint: str = "", smallest: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.smallest = smallest


class ExcessLoss(MpqcError):
    """A result that lost far more than predicted; the message names the units to blame."""

    exit_code = 6
    code = "excess-loss"


class InternalError(MpqcError):
    """A bug in mpqc: an invariant failed inside a pass."""

    exit_code = 70
    code = "internal"


class MissingFact(InternalError):
    """A note or an array that a pass counts on is not there."""


class Miscompiled(InternalError):
    """A pass broke its promise: the graph no longer computes what it should."""

    code = "miscompiled"

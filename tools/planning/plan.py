"""What is said of a compilation before it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .forecast import Step


@dataclass(frozen=True)
class Size:
    """How large a result is.

    Attributes:
        bits: Stored bits per weight.
        disk: Bytes of all files, about.
        memory: Bytes of the weights once a runtime has loaded them, about; None where only
            the files were looked at.
    """

    bits: float
    disk: float
    memory: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a compilation would take and give.

    Attributes:
        model: What was looked at.
        weights: Number of weights in all units.
        settings: What the run would be told, in words.
        pipeline: Its passes.
        asked: The result that was asked for; None of a pipeline that meets no budget.
        smallest: The smallest that could be asked for.
        largest: The largest that would change anything.
        steps: The passes in order, and what comes beside them.
        seconds: What all of it takes.
        memory: The most bytes of memory that the process holds, mapped files apart.
        kept: Bytes that stay in the cache.
        scratch: Bytes of temporary files and of the result.
        predicted: The loss at what was asked for, as an earlier run leads to expect: nats per
            token, or a relative squared error; None while nothing is known.
        curve: The same over stored bits per weight.
        free_memory: Bytes of memory that can still be taken; None if nobody can tell.
        free_disk: Bytes free on the disk of the cache.
        warnings: What does not fit, and with which settings it would.
        rates: How quick this machine is, by kind of work.
    """

    model: str
    weights: int
    settings: tuple[str, ...]
    pipeline: str
    asked: Size | None
    smallest: Size | None
    largest: Size | None
    steps: tuple[Step, ...]
    seconds: float
    memory: float
    kept: float
    scratch: float
    predicted: float | None
    curve: tuple[tuple[float, float], ...]
    free_memory: int | None
    free_disk: int
    warnings: tuple[str, ...]
    rates: Mapping[str, float]

"""Passes with what they will take here: work turned into seconds, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...passes.engine.pipeline.base import Pass, PassContext
from ...passes.engine.pipeline.work import Kind, Rates, Work
from ...passes.engine.validation.work import validation_work

VALIDATION, WRITING = "validation", "writing the result"


@dataclass(frozen=True)
class Step:
    """A pass, or what comes beside the passes.

    Attributes:
        name: Its name.
        seconds: What it will take.
        memory: Bytes of memory that the process will hold at most by then, mapped files apart.
        kept: Bytes that it leaves in the cache.
        scratch: Bytes on disk meanwhile.
        measured: Whether it has run already, so that the seconds are true.
    """

    name: str
    seconds: float
    memory: float
    kept: float = 0.0
    scratch: float = 0.0
    measured: bool = False


def steps_of(
    passes: Sequence[Pass], works: Sequence[Work], rates: Rates, base: float
) -> list[Step]:
    """Returns passes with what they take.

    Args:
        passes: The passes.
        works: What each of them has to do.
        rates: How quick this machine is.
        base: Bytes of memory that are held before.
    """
    steps, held = [], base
    for one, work in zip(passes, works, strict=True):
        memory = held + max(work.held, work.left)
        seconds = work.seconds(rates)
        steps.append(Step(one.name, seconds, memory, work.kept, work.scratch))
        held += work.left
    return steps


def checking(
    passes: Sequence[Pass], model: ir.Model, context: PassContext, rates: Rates
) -> Step:
    """Returns what holding all passes to their promises takes."""
    works = [validation_work(one.promised(), model, context) for one in passes]
    return Step(VALIDATION, sum(work.seconds(rates) for work in works), 0.0)


def writing(size: float, rates: Rates) -> Step:
    """Returns what writing and loading the files of the result takes."""
    work = Work({Kind.WRITE: size, Kind.LOAD: size})
    return Step(WRITING, work.seconds(rates), 0.0, scratch=size)

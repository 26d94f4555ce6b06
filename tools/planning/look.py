"""Looking at a prepared compilation: quick passes run, the others are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...passes.engine.execution.memory import held_memory
from ...passes.engine.pipeline.base import PassContext
from ...passes.engine.pipeline.instruments import TimePasses, peak_memory
from ...passes.engine.pipeline.outlook import Outlook
from ...passes.engine.pipeline.pipeline import Pipeline
from ...passes.engine.pipeline.progress import SilentProgress
from ...passes.engine.pipeline.work import Rates
from ..compilation import Compilation, read_foreign, too_few_bytes
from .forecast import Step, checking, steps_of, writing
from .plan import Plan, Size
from .rates import measure
from .room import Places, Room
from .variants import Variant, fewer_samples, quicker_presets, shorter_sequences

_LIBRARIES = 100e6  # bytes that torch and the runtime come to hold in the first long passes


def look(job: Compilation, cache: Path) -> Plan:
    """Returns the plan of a compilation.

    Args:
        job: The compilation, ready to run.
        cache: Where statistics would be kept.
    """
    weights, rest = job.sizes()
    bits = _bits(job, weights, rest)
    pipeline = Pipeline(job.settings.pipeline(bits))
    context = replace(job.context(bits), progress=SilentProgress())
    model, timer = read_foreign(job.original), TimePasses()
    pipeline.check(model)
    first = _first_expensive(pipeline)
    Pipeline(pipeline.passes[:first]).run(model, context, [timer])
    bare = model.clone()
    works, outlook = pipeline.look_ahead(first, model, context)
    rates = measure(bare, context)
    base = float(held_memory() or peak_memory()) + _LIBRARIES
    sizes = _sizes(outlook, bits, weights, rest)
    past = [Step(one.name, one.seconds, base, measured=True) for one in timer.timings]
    steps = [
        *past,
        *steps_of(pipeline.passes[first:], works, rates, base),
        replace(checking(pipeline.passes, bare, context, rates), memory=base),
        replace(writing(sizes[0].disk if sizes else weights * bits / 8, rates), memory=base),
    ]
    places = Places(cache, Path.cwd())
    ahead, free = _Ahead(bare, context, rates, base, places), places.free()
    kinds = [
        fewer_samples(pipeline, context.calibration),
        shorter_sequences(pipeline, context.calibration, job.settings.options.sequence_length),
        quicker_presets(job.settings, bits, context.calibration),
    ]
    return Plan(
        model=str(job.source.named),
        weights=weights,
        settings=tuple(job.settings.lines()),
        pipeline=str(pipeline),
        asked=sizes[0] if sizes else None,
        smallest=sizes[1] if sizes else None,
        largest=sizes[2] if sizes else None,
        steps=tuple(steps),
        seconds=sum(one.seconds for one in steps),
        memory=max(one.memory for one in steps),
        kept=sum(one.kept for one in steps),
        scratch=max(one.scratch for one in steps),
        predicted=loss_at(outlook.curve, bits) if outlook is not None else None,
        curve=outlook.curve if outlook is not None else (),
        free_memory=None if free.memory is None else int(free.memory),
        free_disk=int(free.cache),
        warnings=tuple(ahead.warnings(places.needed(steps, base), kinds)),
        rates={kind.value: rate for kind, rate in rates.items()},
    )


def _bits(job: Compilation, weights: int, rest: int) -> float:
    """Returns the stored bits per weight that a budget comes to."""
    budget = job.settings.budget
    if budget.bits is not None:
        return budget.bits
    bits = ((budget.size or 0) - rest) * 8 / max(weights, 1)
    if bits <= 0:
        raise too_few_bytes(budget.size or 0, rest)
    return bits


def _first_expensive(pipeline: Pipeline) -> int:
    long = (at for at, one in enumerate(pipeline.passes) if one.expensive)
    return next(long, len(pipeline.passes))


def _sizes(outlook: Outlook | None, bits: float, weights: int, rest: int) -> list[Size]:
    """Returns what was asked for, the smallest and the largest."""
    if outlook is None:
        return []

    def size(of: float, memory: float | None = None) -> Size:
        return Size(of, weights * of / 8 + rest, memory)

    return [
        size(min(bits, outlook.most), weights * outlook.resident / 8),
        size(outlook.least),
        size(outlook.most),
    ]


def loss_at(curve: Sequence[tuple[float, float]], bits: float) -> float | None:
    """Returns the loss at some bits per weight; None beyond what is known."""
    if not curve or bits < curve[0][0]:
        return None
    known, losses = zip(*curve, strict=True)
    return float(np.interp(bits, known, losses))


@dataclass(frozen=True)
class _Ahead:
    """The same compilation with other settings.

    Attributes:
        model: The graph, as the first long pass sees it.
        context: What passes are given.
        rates: How quick this machine is.
        base: Bytes of memory that are held before.
        places: Where the run would write.
    """

    model: ir.Model
    context: PassContext
    rates: Rates
    base: float
    places: Places

    def needed(self, variant: Variant) -> Room:
        """Returns what a run with another setting takes."""
        passes = variant.pipeline
        context = replace(self.context, calibration=variant.calibration)
        first = _first_expensive(passes)
        works = passes.works(first, self.model, context)
        steps = steps_of(passes.passes[first:], works, self.rates, self.base)
        return self.places.needed(steps, self.base)

    def warnings(self, needed: Room, kinds: Sequence[Iterator[Variant]]) -> Iterator[str]:
        """Yields what does not fit, and of each kind the first setting with which it would."""
        free = self.places.free()
        lacking = free.lacks(needed)
        yield from lacking
        if not lacking:
            return
        fit = (
            next((v for v in kind if not free.lacks(self.needed(v))), None) for kind in kinds
        )
        words = [one.words for one in fit if one is not None]
        if words:
            yield "it would fit with " + ", or with ".join(words)
        else:
            yield "neither fewer samples, shorter sequences nor another preset would fit"

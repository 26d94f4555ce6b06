"""The pass ``tune-scales``: lets the scales make up for what rounding did elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ...ir import (
    Annotation,
    BlockId,
    Calibrated,
    Feeds,
    QuantSpec,
    UsageError,
    need_note,
    note_of,
    quantizable,
)
from ...ir.analysis.blocks import blocks_of
from ..engine.execution.devices import free_bytes
from ..engine.execution.executor import BlockRunner, Weights
from ..engine.execution.extent import FLOAT_BYTES, Extent
from ..engine.execution.memory import available_memory
from ..engine.execution.precision import coarse_products
from ..engine.execution.samples import Sample, Samples
from ..engine.numerics.divergence_gradient import divergence
from ..engine.pipeline.base import Pass, PassContext, Promise, Session
from ..engine.pipeline.forecast import Forecast
from ..engine.pipeline.work import Kind, Work
from ..engine.statistics.objective import choose_objective
from .scales import TunedScales

_WARMING = 0.1  # share of the steps in which the rate grows to its full value
_BETAS = (0.9, 0.95)
_CLEAR = 0.97  # on a few held-out samples, smaller gains are noise: MiniLM lost by them

_KEPT, _MOST_KEPT = 0.1, 2 << 30  # of free memory, for what a step keeps going forward

_PRODUCTS = 3  # of a step: forward, back to the inputs and to the weights
_EXPANSIONS = 12  # walks over all weights in a step: from codes and back to scales
_STEP_BYTES = 12.0  # of a weight, that a step would keep if there were room
# Of a weight: the original in the runtime, and codes, values and the optimizer's state.
_HELD_BYTES = 12.0


@dataclass(frozen=True)
class TuneScales(Pass):
    """Tune the scales of all units together, by the divergence of the whole model.

    Rounding sees one unit at a time. Here, gradients of the divergence between the original
    and the rounded model run through all units at once, and Adam moves the scales, one sample
    per step. On processors that multiply bfloat16, the products of a step round to it. Codes
    stay as they are, and the result does not grow by a byte. It is kept only if it lowers the
    divergence clearly (3 %) on samples that nothing was fitted to.

    Attributes:
        samples: Calibration samples to take steps on, spread evenly; 0 takes all.
        rate: Largest relative change of a scale of 2-bit codes in a step, half as large for
            every further bit; falls to zero along a cosine.
    """

    name: ClassVar[str] = "tune-scales"
    reads: ClassVar[tuple[type[Annotation], ...]] = (BlockId, Calibrated, QuantSpec)
    promise: ClassVar[Promise] = Promise.SAME_CODES
    samples: int = 0
    rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.samples < 0 or not 0 < self.rate < 1:
            raise UsageError(
                f"tune-scales cannot take samples={self.samples}, rate={self.rate}",
                hint="samples of 0 or more, and a rate between 0 and 1",
            )

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """A step for each sample: forward and back, again where not kept, and the original."""
        if context.calibration is None or not context.calibration.kept_back:
            return Work()
        if context.runner.unsupported(model.graph):
            return Work()
        extent, units = Extent.of(model, context.calibration), quantizable(model)
        weights = float(sum(unit.size for unit in units))
        once = extent.multiply_adds(units)
        steps = len(context.calibration.first(self.samples))
        judged = 2 * len(context.calibration.kept_back)
        room = min(_room(context.device), _STEP_BYTES * weights)
        again = 1 - room / max(_STEP_BYTES * weights, 1)
        amounts = {
            Kind.COARSE: (_PRODUCTS + again) * once * steps,
            Kind.SWEEP: once * judged,
            Kind.RUN: once * (steps + judged),
            Kind.WALK: weights * (_EXPANSIONS * steps + judged),
            Kind.LOAD: FLOAT_BYTES * weights,
        }
        return Work(amounts, held=_HELD_BYTES * weights + room)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Changes the scales of every unit that has been rounded."""
        if context.calibration is None or context.original is None:
            raise UsageError(
                f"{self.name} needs samples and the original model",
                hint="give calibration data, or leave the pass out",
            )
        tuned = [
            TunedScales(unit, context.arrays, context.device)
            for unit in quantizable(model)
            if note_of(unit.notes, QuantSpec) is not None
        ]
        why = _obstacle(model, tuned, context)
        if why:
            context.progress.say(f"scales stay as they are: {why}")
            context.report[self.name] = {"kept": False, "why": why}
            return False
        note = need_note(model, Calibrated)
        objective = choose_objective(model, context.calibration.tokens, note.objective)
        runner = BlockRunner(context.runner, blocks_of(model), objective.outputs)
        weights = {one.unit.weight: one.weight for one in tuned}
        outputs = sorted(str(value.name) for value in objective.outputs)
        with context.runner.session(context.original) as original:
            room = _room(context.device)
            tuner = _Tuner(runner, weights, outputs, original, objective.kind, room)
            facts = self._tune(tuner, tuned, context)
        if facts["kept"]:
            for one in tuned:
                one.store()
        context.report[self.name] = facts
        return bool(facts["kept"])

    def _tune(
        self, tuner: _Tuner, tuned: Sequence[TunedScales], context: PassContext
    ) -> dict[str, float | bool | int]:
        """Takes the steps; returns how far that helped on samples nothing was fitted to."""
        assert context.calibration is not None
        held_out = Samples.of(context, context.calibration.kept_back)
        before = tuner.divergence(held_out)
        chosen = Samples.of(context, self._chosen(context.calibration.training, context.seed))
        parameters = [one for unit in tuned for one in unit.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.rate, betas=_BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(len(chosen)))
        for sample in context.progress.track(chosen, len(chosen), "tuning scales"):
            optimizer.zero_grad()
            with coarse_products():
                tuner.differentiate(sample)
            optimizer.step()
            schedule.step()
        for unit in tuned:
            unit.round_scales()
        after = tuner.divergence(held_out)
        return {
            "samples": len(chosen),
            "before": before,
            "after": after,
            "kept": after < _CLEAR * before,
        }

    def _chosen(self, feeds: Sequence[Feeds], seed: int) -> list[Feeds]:
        """Returns the samples in the order of the steps."""
        count = min(self.samples or len(feeds), len(feeds))
        spread = np.linspace(0, len(feeds) - 1, count).round().astype(int)
        return [feeds[at] for at in np.random.default_rng(seed).permutation(spread)]


@dataclass(frozen=True)
class _Tuner:
    """The rounded model and the original, side by side.

    Attributes:
        runner: Runs the rounded model.
        weights: The weights that are tuned, functions of their scales.
        outputs: Names of the outputs that are compared.
        original: The original in the target runtime.
        objective: ``logits`` or ``regression``.
        room: Bytes that a step may keep of its way forward.
    """

    runner: BlockRunner
    weights: Weights
    outputs: list[str]
    original: Session
    objective: str
    room: int

    def differentiate(self, sample: Sample) -> None:
        """Adds the gradient of the divergence of one sample to the parameters'."""
        passages = self.runner.record(sample, self.weights, self.room)
        _, gradients = self._compare(sample)
        sample.gradients.update(gradients)
        for block in reversed(self.runner.blocks):
            passage = passages.pop(block, None)
            self.runner.backward(sample, block, weights=self.weights, passage=passage)
        sample.clear()

    def divergence(self, samples: Samples) -> float:
        """Returns the mean over ``samples``."""
        found = []
        for sample in samples:
            self.runner.run(sample, self.weights)
            found.append(self._compare(sample)[0])
            sample.clear()
        return float(np.mean(found))

    def _compare(self, sample: Sample) -> tuple[float, dict[str, torch.Tensor]]:
        exact = self.original.run(sample.arrays, self.outputs)
        rounded = {name: sample[name] for name in self.outputs}
        return divergence(self.objective, exact, rounded, sample.padding.real)


def _room(device: str) -> int:
    """Returns how many bytes a step may keep; it changes no number."""
    memory = free_bytes(device)
    free = memory[0] if memory is not None else available_memory()
    return min(_MOST_KEPT, int(_KEPT * (free or 0)))


def _obstacle(model: ir.Model, tuned: Sequence[TunedScales], context: PassContext) -> str:
    """Returns why nothing can be tuned; empty when something can."""
    assert context.calibration is not None
    if not tuned:
        return "no unit is stored in codes"
    if not context.calibration.kept_back:
        return "no held-out sample is there to judge them by"
    refused = context.runner.unsupported(model.graph)
    return f"no gradients: {next(iter(refused.values()))}" if refused else ""


def _schedule(steps: int) -> Callable[[int], float]:
    """Returns the share of the rate by step: a short rise, then half a cosine."""
    rising = max(1.0, steps * _WARMING)
    return lambda step: (
        min(1.0, (step + 1) / rising) * (1 + math.cos(math.pi * step / steps)) / 2
    )

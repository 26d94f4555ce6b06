"""The pass ``calibrate``: second moments of every unit's inputs and gradients."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx_ir as ir

from ...ir import (
    Annotation,
    BlockId,
    Calibrated,
    Calibration,
    LeftInFloat,
    LocalHessian,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    drop_note,
    find_units,
    note_of,
)
from ...ir.analysis.blocks import blocks_of
from ...ir.content_key import model_key
from ..engine.execution.devices import CPU
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Couplings, Forecast
from ..engine.pipeline.work import Work
from ..engine.statistics.moments import MomentSums, moment_names
from ..engine.statistics.moved import forget_moves
from ..engine.statistics.objective import Objective, choose_objective
from ..engine.statistics.runtime_moments import in_groups, measure
from .shards import Shards
from .stats_files import Statistics
from .sweep import Sweep
from .sweep_work import runtime_work, sweep_work

_FORMAT = (
    "mpqc.stats/12"  # part of the key: a change of what is gathered makes old files stale
)
_MANY_ROWS = 8192  # beyond this, sampled row moments are too noisy to choose bits by row


@dataclass(frozen=True)
class Calibrate(Pass):
    """Gather the second moments that rounding and allocation need, in two streaming sweeps.

    Writes ``#stats`` on the anchor of every unit, ``#float`` on those of units that must stay
    in float, and ``#calibration`` on the model. The arrays are in a file for each block, keyed
    by the content of the model and of the samples. If these files exist, no sweep runs; one
    that was killed goes on after the last block that it has finished.

    If torch has no lowering for some operator, the moments come from the target runtime, and
    the importance of a unit is the divergence there when this unit alone is rounded.

    Attributes:
        objective: What to measure the divergence on: ``auto``, ``logits`` or ``regression``.
        coupled: Also gather the interaction between errors of different rows of a product, for
            ``quantize-weights{coupled=true}``. Takes a matrix of rows x rows for each product
            of at most 8192 rows, and needs gradients.
    """

    name: ClassVar[str] = "calibrate"
    reads: ClassVar[tuple[type[Annotation], ...]] = (BlockId,)
    writes: ClassVar[tuple[type[Annotation], ...]] = (TensorStats, Calibrated, LeftInFloat)
    expensive: ClassVar[bool] = True
    promise: ClassVar[Promise] = Promise.SAME_GRAPH
    objective: str = "auto"
    coupled: bool = False

    def forecast(self, before: Forecast) -> Forecast:
        return super().forecast(before).telling(Couplings(self.coupled))

    def recall(self, model: ir.Model, context: PassContext) -> None:
        """Annotates ``model`` as the file of an earlier run says, if there is one."""
        if context.calibration is None:
            return
        units = find_units(model)
        objective = choose_objective(model, context.calibration.tokens, self.objective)
        good = [unit for unit in units if not unit.reason]
        for stats in self._places(model, good, context, context.calibration):
            facts = stats.peek()
            if facts is not None:
                key = stats.index.key
                _annotate(model, units, facts, context.calibration, objective, key)
                return

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Both sweeps; nothing where an earlier run has left its statistics."""
        if context.calibration is None or note_of(model, Calibrated) is not None:
            return Work()
        units = [unit for unit in find_units(model) if not unit.reason]
        if context.runner.unsupported(model.graph):
            return runtime_work(model, units, context)
        objective = choose_objective(model, context.calibration.tokens, self.objective)
        return sweep_work(model, units, objective, context, coupled=self.coupled)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates ``model`` and mounts the stats file in the array store."""
        if context.calibration is None:
            raise UsageError("calibrate needs samples", hint="give --calibration FILE")
        units = find_units(model)
        good = [unit for unit in units if not unit.reason]
        objective = choose_objective(model, context.calibration.tokens, self.objective)
        stats = self._stats(model, good, context, context.calibration)
        facts = stats.facts(context.progress.say)
        reused = facts is not None
        if facts is None:
            facts = _gather(model, good, objective, stats, context)
        _annotate(model, units, facts, context.calibration, objective, stats.index.key)
        forget_moves(good, context.arrays)
        stats.mount(context.arrays)
        context.report[self.name] = {
            "reused": reused,
            "sweep": facts["sweep"],
            "seconds": facts.get("seconds"),
        }
        return True

    def _stats(
        self, model: ir.Model, units: list[Unit], context: PassContext, samples: Calibration
    ) -> Statistics:
        """Returns the files for the stats of this model and samples."""
        found = self._places(model, units, context, samples)
        complete = (one for one in found if one.facts(context.progress.say) is not None)
        return next(complete, found[-1])

    def _places(
        self, model: ir.Model, units: list[Unit], context: PassContext, samples: Calibration
    ) -> list[Statistics]:
        """Returns the files that would serve, those of this pass last.

        Statistics with couplings between rows also serve those who need none. Another version
        may see other units in the same model, so the key holds what is measured of it.
        """
        runs = not context.runner.unsupported(model.graph)
        count = len(blocks_of(model) if runs else in_groups(units))
        inputs = (
            *(_FORMAT, model_key(model), *sorted(moment_names(units, coupled=False))),
            *(samples.key, len(samples.training), context.seed),
            *([] if context.device == CPU else [context.device.partition(":")[0]]),
        )
        return [
            Statistics.of(
                context,
                (*inputs, one),
                moment_names(units, coupled=one.coupled and runs),
                count,
            )
            for one in (replace(self, coupled=True), self)
        ]


def _gather(
    model: ir.Model,
    units: list[Unit],
    objective: Objective,
    stats: Statistics,
    context: PassContext,
) -> dict[str, Any]:
    """Gathers the statistics and returns their facts.

    Raises:
        InputError: The samples overflow the model.
    """
    assert context.calibration is not None
    samples = context.calibration
    refused, begun = context.runner.unsupported(model.graph), time.perf_counter()
    if refused:
        why = next(iter(refused.values()))
        context.progress.say(f"no gradients: {why}; measuring in the runtime instead")
        for place, group in enumerate(in_groups(units)):
            if stats.blocks[place].facts(context.progress.say) is not None:
                continue
            sums = MomentSums(stats.wanted)
            measure(model, group, objective, samples.training, sums, context)
            stats.write(place, sums, 0.0 if place else 1.0)
    else:
        blocks = blocks_of(model)
        shards = Shards(blocks, units, objective, samples, stats, context)
        Sweep(model, shards, context).run()
    return stats.finish(
        units,
        samples=len(samples.training),
        seconds=round(time.perf_counter() - begun, 3),
        sweep=f"runtime ({why})" if refused else "torch",
    )


def _by_row(unit: Unit, objective: Objective) -> bool:
    """Tells whether the rows' moments are sure enough to choose bits by row.

    A sampled Fisher makes rows look free that the samples never touched. Logits and lookups
    have closed forms with a prior; of other units only the very tall ones have too few samples
    a row.
    """
    closed = all(
        use.kind == "lookup"
        or (objective.kind == "logits" and use.node.outputs[0] in objective.outputs)
        for use in unit.uses
    )
    return closed or unit.shape[0] <= _MANY_ROWS


def _annotate(
    model: ir.Model,
    units: list[Unit],
    facts: dict[str, Any],
    samples: Calibration,
    objective: Objective,
    key: str,
) -> None:
    tokens = round(facts["positions"])
    for unit in units:
        if unit.reason:
            annotate(unit.notes, LeftInFloat(unit.name, unit.reason))
        else:
            by_row = _by_row(unit, objective)
            drop_note(unit.notes, LocalHessian)
            rows = facts["rows"].get(unit.name, tokens)
            annotate(unit.notes, TensorStats(unit.name, len(unit.uses), rows, by_row))
    output = str(objective.outputs[0].name)
    count = len(samples.training)
    annotate(
        model,
        Calibrated(key, samples.source, count, tokens, objective.kind, output, samples.random),
    )

"""The pass ``calibrate``: second moments of every unit's inputs and gradients."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx_ir as ir

from ...ir import (
    Annotation,
    BlockId,
    CachedFile,
    Calibrated,
    Calibration,
    InputError,
    LeftInFloat,
    LocalHessian,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    drop_note,
    find_units,
)
from ...ir.analysis.blocks import blocks_of
from ...ir.content_key import model_key
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Couplings, Forecast
from ..engine.statistics.moments import MomentFile, moment_layout
from ..engine.statistics.moved import forget_moves
from ..engine.statistics.objective import Objective, choose_objective
from ..engine.statistics.runtime_moments import measure
from .sweep import sweep

_FORMAT = (
    "mpqc.stats/10"  # part of the key: a change of what is gathered makes old files stale
)
_MANY_ROWS = 8192  # beyond this, sampled row moments are too noisy to choose bits by row


@dataclass(frozen=True)
class Calibrate(Pass):
    """Gather the second moments that rounding and allocation need, in two streaming sweeps.

    Writes ``#stats`` on the anchor of every unit, ``#float`` on those of units that must stay
    in float, and ``#calibration`` on the model. The arrays are in a file keyed by the content
    of the model and of the samples. If that file exists, no sweep runs.

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

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates ``model`` and mounts the stats file in the array store."""
        if context.calibration is None:
            raise UsageError("calibrate needs samples", hint="give --calibration FILE")
        units = find_units(model)
        good = [unit for unit in units if not unit.reason]
        objective = choose_objective(model, context.calibration.tokens, self.objective)
        stats, facts = self._stats(model, good, context, context.calibration)
        reused = facts is not None
        if facts is None:
            facts = _gather(model, good, objective, stats, context, coupled=self.coupled)
        _annotate(model, units, facts, context.calibration, objective, stats.key)
        forget_moves(good, context.arrays)
        context.arrays.mount(stats.path)
        context.report[self.name] = {
            "reused": reused,
            "sweep": facts["sweep"],
            "seconds": facts.get("seconds"),
        }
        return True

    def _stats(
        self, model: ir.Model, units: list[Unit], context: PassContext, samples: Calibration
    ) -> tuple[CachedFile, dict[str, Any] | None]:
        """Returns the file for the stats of this model and samples, and its facts if any.

        Statistics with couplings between rows also serve those who need none. Another version
        may see other units in the same model, so the key holds what is measured of it.
        """
        measured = sorted(moment_layout(units, coupled=False))
        inputs = (
            *(_FORMAT, model_key(model), *measured),
            *(samples.key, len(samples.training), context.seed),
        )
        for variant in (replace(self, coupled=True), self):
            stats = context.cached_file(*inputs, variant)
            facts = stats.facts(context.progress.say)
            if facts is not None:
                break
        return stats, facts


def _gather(
    model: ir.Model,
    units: list[Unit],
    objective: Objective,
    stats: CachedFile,
    context: PassContext,
    *,
    coupled: bool,
) -> dict[str, Any]:
    """Runs the sweeps into ``stats``, which appears complete or not at all.

    Raises:
        InputError: The samples overflow the model.
    """
    assert context.calibration is not None
    samples = context.calibration.training
    refused, begun = context.runner.unsupported(model.graph), time.perf_counter()
    with stats.making(moment_layout(units, coupled=coupled and not refused)) as arrays:
        file = MomentFile(arrays)
        if refused:
            why = next(iter(refused.values()))
            context.progress.say(f"no gradients: {why}; measuring in the runtime instead")
            positions = measure(model, units, objective, samples, file, context)
        else:
            positions = sweep(blocks_of(model), units, objective, samples, file, context)
        _refuse_overflow(file)
        file.finish(positions)
        arrays.facts = {
            "positions": positions,
            "rows": file.rows_seen(),
            "samples": len(samples),
            "seconds": round(time.perf_counter() - begun, 3),
            "sweep": f"runtime ({why})" if refused else "torch",
        }
    return arrays.facts


def _refuse_overflow(file: MomentFile) -> None:
    """Refuses samples on which squares of activations or gradients are no numbers.

    Raises:
        InputError: Names a unit.
    """
    broken = file.overflown()
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise InputError(
            f"what {broken[0]!r}{others} multiplies on these samples, or its gradient, is NaN "
            "or has squares beyond float32",
            hint="look for entries of 1e19 or more in the samples, and run the model on them",
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

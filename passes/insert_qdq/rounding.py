"""Which activations are rounded, to which codes, and what that costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from ...ir import Budgeted, FloatActivations, Unit, UsageError, annotate, note_of
from ...ir.analysis.offered import result_type
from ..engine.execution.multiplications import multiplications
from ..engine.numerics.activation_grid import Grid, find_grid
from .activations import histograms, quantize
from .measured import measured_losses
from .regions import integer_convolutions, without_moved_codes
from .work import Work, activation
from .worthwhile import Worth

_SAMPLES = 16  # enough for a range; a Hessian needs more


def quantize_activations(
    work: Work, kind: str, ranges: str, tolerance: float
) -> dict[str, Any]:
    """Rounds every activation that an integer kernel reads.

    Args:
        work: The units of a graph; is told what is rounded.
        kind: ``int8``, ``uint8`` or ``fp8``.
        ranges: ``mse`` or ``minmax``.
        tolerance: Activations of products stay in float, the most expensive first, until the
            predicted cost of the others is at most this many times that of the weights.

    Returns:
        What to report.
    """
    samples = work.context.calibration
    if samples is None:
        raise UsageError(
            f"rounding activations to {kind} needs samples", hint="give --calibration FILE"
        )
    reads = [(unit, use) for unit, _ in work.specs.values() for use in unit.uses]
    float8 = kind == "fp8"
    reads = [(unit, use) for unit, use in reads if work.integer_rows(unit, use, float8=float8)]
    reads = [one for one in reads if note_of(one[0].notes, FloatActivations) is None]
    convolved = {use.node: unit for unit, use in reads if use.kind == "conv"}
    if kind == "int8":
        convolved = {
            node: convolved[node] for node in without_moved_codes(work.model.graph, convolved)
        }
    able, places = integer_convolutions(work.model.graph, convolved)
    reads = [one for one in reads if one[1].kind != "conv" or one[1].node in able]
    types = {activation(use): result_type(unit, use) for unit, use in reads}
    for value in places:
        types.setdefault(value, value.dtype or ir.DataType.FLOAT)
    seen = histograms(work.model, list(types), samples.first(_SAMPLES), work.context)
    fitted = {one: seen[places.get(one, one)] for one in types}
    grids = {one: find_grid(fitted[one], kind, ranges) for one in types}
    errors = {one: grid.error(seen[one]) for one, grid in grids.items()}
    losses = dict.fromkeys(types, 0.0)
    for unit, use in reads:
        losses[activation(use)] += work.loss(unit, use, errors[activation(use)])
    budget = note_of(work.model, Budgeted)
    products = {one: loss for one, loss in losses.items() if one not in places}
    costly = _costly(products, tolerance * budget.loss) if budget is not None else {}
    between = {one: grids[one] for one in places}
    losses |= measured_losses(work.model, between, work.context)
    numbers = {one: seen[one].count / _SAMPLES for one in types}
    kept = _kept(work, {node: convolved[node] for node in able}, losses, numbers)
    reads = [one for one in reads if one[1].kind != "conv" or one[1].node in kept]
    places = integer_convolutions(work.model.graph, kept)[1]
    wanted = {*places, *map(activation, (use for _, use in reads))} - costly.keys()
    made = {
        one: quantize(work.model.graph, work.names, one, grid, types[one])
        for one, grid in grids.items()
        if one in wanted
    }
    work.quantized = {
        use.node: made[activation(use)] for _, use in reads if activation(use) in made
    }
    for value in places:
        if value in made:
            _let_all_read(value, made[value])
    loss = sum(losses[one] for one in made)
    if budget is not None:
        annotate(work.model, replace(budget, loss=budget.loss + loss))
    left = [
        use.node.name
        for unit, _ in work.specs.values()
        for use in unit.uses
        if use.kind in ("product", "conv") and use.node not in work.quantized
    ]
    return {
        "activations": {
            str(one.name): _facts(grids[one], errors[one], losses[one]) for one in made
        },
        "activation_loss": loss,
        "too_costly": {str(one.name): losses[one] for one in costly},
        "float_activations": left,
    }


def _kept(
    work: Work,
    convolved: Mapping[ir.Node, Unit],
    losses: Mapping[ir.Value, float],
    sizes: Mapping[ir.Value, float],
) -> Collection[ir.Node]:
    """Returns the convolutions that are to compute in integers: all, if no loss is known."""
    budget = note_of(work.model, Budgeted)
    if budget is None or not convolved:
        return list(convolved)
    done = multiplications(work.model, list(convolved.values()), work.context)
    times = {node: done[unit] for node, unit in convolved.items()}
    table = work.context.capabilities
    prices = table.integer_time, table.conversion
    return Worth(work.model.graph, times, losses, sizes, budget.loss, *prices).chosen()


def _costly(losses: Mapping[ir.Value, float], most: float) -> dict[ir.Value, float]:
    """Returns the costliest activations, without which the others lose ``most`` at most."""
    costly, left = {}, sum(losses.values())
    for one, loss in sorted(losses.items(), key=lambda pair: -pair[1]):
        if left <= most or loss == 0:
            break
        costly[one] = loss
        left -= loss
    return costly


def _let_all_read(value: ir.Value, rounded: ir.Value) -> None:
    """Lets everybody who reads an activation read the rounded one."""
    for usage in list(value.uses()):
        if usage.node.op_type != "QuantizeLinear":
            usage.node.replace_input_with(usage.idx, rounded)


def _facts(grid: Grid, error: float, loss: float) -> dict[str, Any]:
    return {
        "scale": grid.scale,
        "zero_point": grid.zero_point,
        "squared_error": error,
        "predicted": loss,
    }

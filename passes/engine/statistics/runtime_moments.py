"""Moments for graphs that torch cannot run: activations and divergences from the runtime.

The Hessian is the plain second moment of the activations, which the runtime shows as extra
outputs. The importance of a unit is one number for all its rows: the divergence that storing
the unit alone in few bits causes, divided by what the rows predict together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch

from ....ir import Feeds, Unit
from ..execution.exposing import observe
from ..execution.padding import Padding
from ..execution.samples import Samples
from ..numerics.divergence import MASKED, kl_divergence
from ..numerics.gptq import nearest
from ..numerics.row_errors import row_errors
from ..pipeline.base import PassContext
from .moments import MomentSums, UnitMoments, rounding_variance
from .objective import Objective

Outputs = dict[str, np.ndarray]
_PROBE_BITS, _PROBE_GROUP = 4, 32
_PROBE_SAMPLES = 4  # a divergence needs fewer samples than a Hessian
_MOST_HELD = 1 << 30  # bytes of sums in memory


def _products(units: Sequence[Unit]) -> dict[ir.Value, list[tuple[UnitMoments, int]]]:
    """Returns the activations that products multiply, and which uses of units those are."""
    found: dict[ir.Value, list[tuple[UnitMoments, int]]] = defaultdict(list)
    for unit in units:
        for at, use in enumerate(unit.uses):
            if use.kind == "product":
                found[use.activation].append((UnitMoments(unit), at))
    return found


def _add_inputs(
    moments: UnitMoments, use: int, inputs: torch.Tensor, sums: MomentSums
) -> None:
    even = inputs.new_ones(len(inputs))
    sums.add_gram(moments.name(use, "hessian"), inputs, None, len(inputs))
    variance = rounding_variance(inputs, even)
    sums.add(moments.name(use, "activation"), variance, len(inputs))
    sums.add_inputs(moments, use, inputs)


def _add_lookups(units: Sequence[Unit], sums: MomentSums) -> None:
    for unit in units:
        for at, use in enumerate(unit.uses):
            if use.kind == "lookup":
                name = UnitMoments(unit).name(at, "hessian")
                sums.add(name, torch.eye(unit.shape[1]), 1)


def divergence(
    objective: Objective, exact: Outputs, other: Outputs, padding: Padding
) -> tuple[float, int]:
    """Returns the summed divergence of one sample and at how many places it was taken."""
    total, places = 0.0, 0
    for value in objective.outputs:
        name = str(value.name)
        flat_p, flat_q = (padding.tokens(x[name]).astype(np.float64) for x in (exact, other))
        places += len(flat_p)
        if not len(flat_p):
            continue
        if objective.kind == "logits":
            total += float(kl_divergence(flat_p, flat_q).sum())
        else:
            real = np.abs(flat_p) < MASKED
            flat_p, flat_q = np.where(real, flat_p, 0), np.where(real, flat_q, 0)
            scale = max(float(np.square(flat_p).mean()), 1e-24) * flat_p.shape[1]
            total += float(0.5 * np.square(flat_q - flat_p).sum() / scale)
    return total, places


def _outputs(
    model: ir.Model, objective: Objective, samples: Samples, context: PassContext
) -> list[Outputs]:
    names = [str(value.name) for value in objective.outputs]
    with context.runner.session(model) as session:
        return [session.run(sample.arrays, names) for sample in samples]


def _importance(
    model: ir.Model,
    unit: Unit,
    objective: Objective,
    samples: Samples,
    exact: Sequence[Outputs],
    context: PassContext,
) -> float:
    """Returns the measured divergence of the probe over what weight 1 on all rows predicts."""
    weight = torch.from_numpy(unit.matrix())
    even = torch.ones(weight.shape[1])
    rounded = nearest(weight, _PROBE_BITS, _PROBE_GROUP, even).dequantize(_PROBE_GROUP)
    kept = unit.tensor
    try:
        unit.replace(rounded.numpy())
        other = _outputs(model, objective, samples, context)
    finally:
        unit.put_back(kept)
    pairs = [
        divergence(objective, p, q, sample.padding)
        for p, q, sample in zip(exact, other, samples, strict=True)
    ]
    measured = sum(total for total, _ in pairs) / max(sum(places for _, places in pairs), 1)
    predicted = 0.5 * float(row_errors(weight, rounded, even).sum())
    return measured / max(predicted, 1e-30)


def in_groups(units: Sequence[Unit]) -> list[list[Unit]]:
    """Deals units out to groups whose sums have room in memory together."""
    groups: list[list[Unit]] = [[]]
    taken = 0
    for unit in units:
        size = 4 * unit.shape[1] ** 2 * len(unit.uses)
        if groups[-1] and taken + size > _MOST_HELD:
            groups.append([])
            taken = 0
        groups[-1].append(unit)
        taken += size
    return groups


def measure(
    model: ir.Model,
    units: Sequence[Unit],
    objective: Objective,
    feeds: Sequence[Feeds],
    sums: MomentSums,
    context: PassContext,
) -> None:
    """Adds the moments of some units, without gradients; the loss has one place."""
    products, samples = _products(units), Samples.of(context, feeds)
    _add_lookups(units, sums)
    for value, tokens in observe(model, list(products), samples, context, "calibrating"):
        inputs = torch.from_numpy(tokens.astype(np.float32)).to(context.device)
        for moments, use in products[value] if len(inputs) else ():
            _add_inputs(moments, use, inputs, sums)
    probes = Samples.of(context, feeds[:_PROBE_SAMPLES])
    exact = _outputs(model, objective, probes, context)
    for unit in context.progress.track(units, len(units), "probing units"):
        found = _importance(model, unit, objective, probes, exact, context)
        mean = _mean_energy(sums, unit)
        for at in range(len(unit.uses)):
            rows = torch.full((unit.shape[0],), found / mean)
            sums.add(UnitMoments(unit).name(at, "rows"), rows, 0)


def _mean_energy(sums: MomentSums, unit: Unit) -> float:
    """Returns the sum over uses of the Hessian's mean diagonal: the probe assumed 1."""
    name = UnitMoments(unit).name
    means = [
        1.0 if use.takes_floats else sums.mean_diagonal(name(at, "hessian"))
        for at, use in enumerate(unit.uses)
    ]
    return max(sum(means), 1e-30)

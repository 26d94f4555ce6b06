"""Moments for graphs that torch cannot run: activations and divergences from the runtime.

The Hessian is the plain second moment of the activations, which the runtime shows as extra
outputs. The importance of a unit is one number for all its rows: the divergence that storing
the unit alone in few bits causes, divided by what the rows predict together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch

from ....ir import Feeds, Unit
from ..numerics.divergence import MASKED, kl_divergence
from ..numerics.gptq import nearest, row_errors
from ..pipeline.base import PassContext, Session
from .moments import MomentFile, UnitMoments, rounding_variance, weighted_gram
from .objective import Objective

_PROBE_BITS, _PROBE_GROUP = 4, 32
_PROBE_SAMPLES = 4  # a divergence needs fewer samples than a Hessian
_MOST_HELD = 1 << 30  # bytes of sums in memory: here they are those of all units


def exposing(model: ir.Model, values: list[ir.Value]) -> ir.Model:
    """Returns a copy of ``model`` that also outputs ``values``."""
    copy = model.clone()
    by_name = {str(out.name): out for node in copy.graph for out in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(by_name[str(v.name)] for v in values if v.name not in present)
    return copy


def _activations(units: Sequence[Unit]) -> list[ir.Value]:
    """Returns the activations of the products, without those that the caller knows already."""
    uses = [use for unit in units for use in unit.uses if use.kind == "product"]
    values = dict.fromkeys(use.activation for use in uses)
    return [value for value in values if value.producer() is not None]


def _add_sample(units: Sequence[Unit], found: dict[str, np.ndarray], file: MomentFile) -> None:
    for unit in units:
        moments = UnitMoments(unit)
        for at, use in enumerate(unit.uses):
            if use.kind == "lookup":
                file.add(moments.name(at, "hessian"), torch.eye(unit.shape[1]), 1)
            elif use.kind == "product":
                seen = _seen(use.activation, found)
                inputs = torch.from_numpy(seen.reshape(-1, seen.shape[-1]).astype(np.float32))
                even = torch.ones(len(inputs))
                gram = weighted_gram(inputs, even)
                file.add(moments.name(at, "hessian"), gram, len(inputs))
                variance = rounding_variance(inputs, even)
                file.add(moments.name(at, "activation"), variance, len(inputs))
                file.add_inputs(moments, at, inputs)


def _seen(value: ir.Value, found: dict[str, np.ndarray]) -> np.ndarray:
    if value.const_value is not None:
        return value.const_value.numpy()
    return found[str(value.name)]


def divergence(
    objective: Objective, exact: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> tuple[float, int]:
    """Returns the summed divergence of one sample and at how many places it was taken."""
    total, places = 0.0, 0
    for value in objective.outputs:
        p, q = exact[str(value.name)], other[str(value.name)]
        channels = p.shape[-1] if p.ndim else 1
        flat_p, flat_q = (x.reshape(-1, channels).astype(np.float64) for x in (p, q))
        places += len(flat_p)
        if objective.kind == "logits":
            total += float(kl_divergence(flat_p, flat_q).sum())
        else:
            real = np.abs(flat_p) < MASKED
            flat_p, flat_q = np.where(real, flat_p, 0), np.where(real, flat_q, 0)
            scale = max(float(np.square(flat_p).mean()), 1e-24) * flat_p.shape[1]
            total += float(0.5 * np.square(flat_q - flat_p).sum() / scale)
    return total, places


def _run_all(
    session: Session, feeds: Sequence[Feeds], names: list[str]
) -> list[dict[str, np.ndarray]]:
    return [session.run(feed, names) for feed in feeds]


def _importance(
    model: ir.Model,
    unit: Unit,
    objective: Objective,
    feeds: Sequence[Feeds],
    exact: list[dict[str, np.ndarray]],
    context: PassContext,
) -> float:
    """Returns the measured divergence of the probe over what weight 1 on all rows predicts."""
    weight = torch.from_numpy(unit.matrix())
    even = torch.ones(weight.shape[1])
    rounded = nearest(weight, _PROBE_BITS, _PROBE_GROUP, even).dequantize(_PROBE_GROUP)
    kept = unit.weight.const_value
    names = [str(value.name) for value in objective.outputs]
    try:
        unit.replace(rounded.numpy())
        with context.runner.session(model) as session:
            other = _run_all(session, feeds, names)
    finally:
        unit.weight.const_value = kept
    pairs = [divergence(objective, p, q) for p, q in zip(exact, other, strict=True)]
    measured = sum(total for total, _ in pairs) / max(sum(places for _, places in pairs), 1)
    predicted = 0.5 * float(row_errors(weight, rounded, even).sum())
    return measured / max(predicted, 1e-30)


def measure(
    model: ir.Model,
    units: Sequence[Unit],
    objective: Objective,
    feeds: Sequence[Feeds],
    file: MomentFile,
    context: PassContext,
) -> float:
    """Adds every unit's moments to ``file`` without gradients.

    Returns:
        At how many places the loss was taken.
    """
    wanted = _activations(units)
    names = [str(value.name) for value in wanted]
    with context.runner.session(exposing(model, wanted)) as session:
        for feed in context.progress.track(feeds, len(feeds), "calibrating"):
            _add_sample(units, {**feed, **session.run(feed, names)}, file)
            if file.held_bytes > _MOST_HELD:
                file.flush()
    file.flush()
    probes = feeds[:_PROBE_SAMPLES]
    outputs = [str(value.name) for value in objective.outputs]
    with context.runner.session(model) as session:
        exact = _run_all(session, probes, outputs)
    for unit in context.progress.track(units, len(units), "probing units"):
        found = _importance(model, unit, objective, probes, exact, context)
        mean = _mean_energy(file, unit)
        for at in range(len(unit.uses)):
            rows = torch.full((unit.shape[0],), found / mean)
            file.add(UnitMoments(unit).name(at, "rows"), rows, 0)
    return 1.0


def _mean_energy(file: MomentFile, unit: Unit) -> float:
    """Returns the sum over uses of the Hessian's mean diagonal: the probe assumed 1."""
    name = UnitMoments(unit).name
    means = [
        1.0 if use.kind == "conv" else file.mean_diagonal(name(at, "hessian"))
        for at, use in enumerate(unit.uses)
    ]
    return max(sum(means), 1e-30)

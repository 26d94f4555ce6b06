"""Hessian trace: curvature without directions (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852).

The score is the mean of the Hessian's diagonal over a unit's weights, ``tr(H) / size``, where
H is the Fisher information that ``calibrate`` gathers, ``g_n E[x x^T]`` for row n. A row loses
``1/2 tr(H_n) / columns |w^ - w|^2``: HAWQ-V2's ``Omega``, by rows. Against ``fisher`` it lacks
which columns matter and how they act together.

After ``attention-hessians`` H is from there: of ``|dY|^2`` after the attention, or of the
unit's own output (APTQ, Guan et al. 2024, arXiv 2402.14866); of a lookup, the identity times
how often a row is read, on average over rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir import Option, Unit
from ..engine.pipeline.base import PassContext
from ..engine.statistics.quadratic import Quadratic
from .metric import Asked, Judgement, judge_each
from .weight_error import nearest_errors


def judge(asked: Asked[object]) -> dict[str, Judgement]:
    """Scores every unit by the average trace of its Hessian."""
    return judge_each(asked, _of, "rounding to nearest")


def _of(unit: Unit, options: Sequence[Option], context: PassContext) -> Judgement:
    traces = mean_traces(unit, Quadratic.of(unit, context.arrays, context.device))
    errors = nearest_errors(unit, options, context)
    loss = (0.5 * traces[:, None] * errors).astype(np.float32)
    return Judgement(loss, float(traces.mean()))


def mean_traces(unit: Unit, quadratic: Quadratic) -> np.ndarray:
    """Returns for every row the mean of the diagonal of its Hessian, summed over uses."""
    total = np.zeros(unit.shape[0])
    if quadratic.local:
        for use, local in zip(unit.uses, quadratic.local, strict=True):
            if local is not None:
                total += local.traces().cpu().double().numpy()
            elif use.kind == "lookup":
                total += 1 / len(total)
        return total
    for rows, hessian in zip(quadratic.rows, quadratic.hessians, strict=True):
        diagonal = hessian if hessian.ndim == 1 else hessian.diagonal()
        total += rows.cpu().double().numpy() * float(diagonal.cpu().double().mean())
    return total

"""Activation norm: how large what a unit multiplies is; its own output error, no further.

A row loses ``E[x^2] |w^ - w|^2``, with ``E[x^2]`` the mean square of an input channel, and the
score is the root of that mean square. What the rest of the model does with the error plays no
part. A lookup multiplies by one-hot vectors, in which row ``n`` is one as often as it is
looked up. The inputs of convolutions are not gathered; they count as 1.
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
    """Scores every unit by the root mean square of its inputs."""
    return judge_each(asked, _of, "rounding to nearest")


def _of(unit: Unit, options: Sequence[Option], context: PassContext) -> Judgement:
    squares = mean_squares(unit, Quadratic.of(unit, context.arrays, context.device))
    errors = nearest_errors(unit, options, context)
    loss = (squares[:, None] * errors).astype(np.float32)
    return Judgement(loss, float(np.sqrt(squares.mean())))


def mean_squares(unit: Unit, quadratic: Quadratic) -> np.ndarray:
    """Returns for every row the mean square of an input channel, summed over uses."""
    total = np.zeros(unit.shape[0])
    for use, rows, hessian in zip(unit.uses, quadratic.rows, quadratic.hessians, strict=True):
        if use.kind == "lookup":
            total += rows.cpu().double().numpy()
        else:
            diagonal = hessian if hessian.ndim == 1 else hessian.diagonal()
            total += float(diagonal.cpu().double().mean())
    return total

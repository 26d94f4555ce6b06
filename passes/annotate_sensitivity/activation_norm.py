"""Activation norm: how large what a unit multiplies is; its own output error, no further.

A row loses ``E[x^2] |w^ - w|^2``, with ``E[x^2]`` the mean square of an input channel, and the
score is the root of that mean square. What the rest of the model does with the error plays no
part. A lookup multiplies by one-hot vectors, in which row ``n`` is one as often as it is
looked up. The inputs of convolutions are not gathered; they count as 1.
"""

from __future__ import annotations

import numpy as np

from ...ir import Unit
from ..engine.statistics.quadratic import Quadratic
from .metric import Asked, Judgement, judge_each
from .weight_error import nearest_errors


def judge(asked: Asked[object]) -> dict[str, Judgement]:
    """Scores every unit by the root mean square of its inputs."""

    def of(unit: Unit) -> Judgement:
        squares = mean_squares(
            unit, Quadratic.of(unit, asked.context.arrays, asked.context.device)
        )
        errors = nearest_errors(unit, asked)
        loss = (squares[:, None] * errors).astype(np.float32)
        return Judgement(loss, float(np.sqrt(squares.mean())))

    return judge_each(asked, of, "rounding to nearest")


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

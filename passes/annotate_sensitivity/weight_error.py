"""Weight error: how far rounding moves the weights, whatever they are multiplied with.

A row loses ``|w^ - w|^2 / |W|^2``, the relative squared error of the linearity theorem (HIGGS,
Malinovskii et al. 2024) with equal slopes for all units. Weights are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...ir import Option, Unit
from ..engine.numerics.doubles import with_doubles
from ..engine.numerics.gptq import as_half, nearest
from ..engine.pipeline.base import PassContext
from .metric import Asked, Judgement, judge_each


def judge(asked: Asked[object]) -> dict[str, Judgement]:
    """Scores every unit by its relative squared error under the smallest option."""
    return judge_each(asked, _of, "rounding to nearest")


def _of(unit: Unit, options: Sequence[Option], context: PassContext) -> Judgement:
    errors = nearest_errors(unit, options, context)
    size = float(np.square(unit.matrix(), dtype=np.float64).sum())
    loss = errors / max(size, 1e-30)
    return Judgement(loss.astype(np.float32), float(loss[:, 0].sum()))


def _stored(weight: torch.Tensor, option: Option, *, signed: bool) -> torch.Tensor:
    if option.is_half:
        return as_half(weight)
    even = weight.new_ones(weight.shape[1])
    rounded = nearest(
        weight, option.bits, option.group, even, signed=signed, float8=option.float8
    )
    return rounded.dequantize(option.group)


def nearest_errors(unit: Unit, options: Sequence[Option], context: PassContext) -> np.ndarray:
    """Returns the squared error of every row, rounded to nearest: rows x options, float64."""
    weight = torch.from_numpy(unit.matrix()).to(context.device)
    signed = context.capabilities.signed_scales
    columns = []
    for option in options:
        rounded = _stored(weight, option, signed=signed)
        error = with_doubles(rounded - weight).double()
        columns.append(error.square().sum(dim=1).cpu().numpy())
    return np.stack(columns, axis=1)

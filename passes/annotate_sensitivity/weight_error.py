"""Weight error: how far rounding moves the weights, whatever they are multiplied with.

A row loses ``|w^ - w|^2 / |W|^2``, the relative squared error of the linearity theorem (HIGGS,
Malinovskii et al. 2024) with equal slopes for all units. Weights are rounded to nearest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...ir import Option, Unit
from ..engine.numerics.doubles import with_doubles
from ..engine.numerics.gptq import as_half, nearest
from .metric import Asked, Judgement, judge_each


def judge(asked: Asked[object]) -> dict[str, Judgement]:
    """Scores every unit by its relative squared error under the smallest option."""

    def of(unit: Unit) -> Judgement:
        errors = nearest_errors(unit, asked)
        size = float(np.square(unit.matrix(), dtype=np.float64).sum())
        loss = errors / max(size, 1e-30)
        return Judgement(loss.astype(np.float32), float(loss[:, 0].sum()))

    return judge_each(asked, of, "rounding to nearest")


def _stored(weight: torch.Tensor, option: Option, *, signed: bool) -> torch.Tensor:
    if option.is_half:
        return as_half(weight)
    even = weight.new_ones(weight.shape[1])
    rounded = nearest(
        weight, option.bits, option.group, even, signed=signed, float8=option.float8
    )
    return rounded.dequantize(option.group)


def nearest_errors(unit: Unit, asked: Asked[Any]) -> np.ndarray:
    """Returns the squared error of every row, rounded to nearest: rows x options, float64."""
    weight = torch.from_numpy(unit.matrix()).to(asked.context.device)
    signed = asked.context.capabilities.signed_scales
    columns = []
    for option in asked.options[unit.name]:
        rounded = _stored(weight, option, signed=signed)
        error = with_doubles(rounded - weight).double()
        columns.append(error.square().sum(dim=1).cpu().numpy())
    return np.stack(columns, axis=1)

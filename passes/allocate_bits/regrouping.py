"""What it does to a unit's rounding when its columns change places.

Columns next to each other share a scale. Two columns that see huge activations, each rounded
almost exactly because it rules its group, must not end up in the same one: sorting the
channels of a LLaMA's third layer by width does just that, and multiplies the error of its
``down`` by seven at 2 bits.
"""

from __future__ import annotations

import numpy as np
import torch

from ...ir import ArrayStore, Option, Unit
from ..engine.numerics.gptq import nearest
from ..engine.statistics.moved import read_moved
from ..engine.statistics.quadratic import DAMPING

_ROWS = 64  # sampled rows: the columns decide, not the rows


def regrouped_error(
    unit: Unit, order: np.ndarray, option: Option, kept: np.ndarray, arrays: ArrayStore
) -> float:
    """Returns by how much the rounding error of ``unit`` grows, as a factor.

    It is estimated from plain rounding and the Hessians' diagonals, which takes a moment.

    Args:
        unit: A unit that was calibrated.
        order: The order that its columns would take.
        option: How it is stored.
        kept: Columns that are not rounded.
        arrays: Supplies the unit's moments.
    """
    columns = torch.from_numpy(order.astype(np.int64))
    price, rows = torch.zeros(unit.shape[1]), torch.zeros(unit.shape[0])
    for term in range(len(unit.uses)):
        diagonal = torch.from_numpy(read_moved(unit, arrays, term, "hessian/deviations")) ** 2
        price += diagonal + DAMPING * diagonal.mean()
        rows += torch.from_numpy(read_moved(unit, arrays, term, "rows"))
    step = max(1, unit.shape[0] // _ROWS)
    weight, rows = torch.from_numpy(unit.matrix()[::step].copy()), rows[::step]
    apart = torch.from_numpy(kept.astype(np.int64))
    weight[:, apart], price[apart] = 0.0, 0.0
    before = _error(weight, price, rows, option)
    after = _error(weight[:, columns], price[columns], rows, option)
    return after / before if before > 0 else 1.0


def _error(
    weight: torch.Tensor, price: torch.Tensor, rows: torch.Tensor, option: Option
) -> float:
    rounded = nearest(weight, option.bits, option.group, price).dequantize(option.group)
    return float(rows @ (rounded - weight).square() @ price)

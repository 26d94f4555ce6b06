"""What rows of integer kernels lose by activations with one int8 step for all of a tensor."""

from __future__ import annotations

import numpy as np
import torch

from ....ir import ArrayStore, Capabilities, Option, Unit
from ....ir.unit_arrays import UnitArrays
from .moved import read_moved
from .quadratic import Quadratic

_STEPS = 255  # of uint8 codes


def integer_losses(
    unit: Unit,
    exact: torch.Tensor,
    option: Option,
    quadratic: Quadratic,
    arrays: ArrayStore,
    table: Capabilities,
) -> torch.Tensor:
    """Returns what every row loses above what ``Quadratic.kernel_loss`` counts for it.

    Of a product that is ``1/2 g_n |w_n|^2 E[s^2] / 12``, where ``s`` is the step of a sample,
    from its lowest to its highest value. What convolutions and LSTMs lose is measured later.

    Args:
        unit: The unit.
        exact: Its weight, rows x columns.
        option: An option with rounded activations.
        quadratic: What errors of its products cost.
        arrays: The ranges of what they read.
        table: Whether other kernels round activations too.
    """
    energy = quadratic.hidden(exact).square().sum(dim=1)
    total = exact.new_zeros(len(exact))
    for at, rows in enumerate(quadratic.rows):
        if unit.uses[at].kind == "product":
            total += 0.5 * rows * energy * _variance(unit, at, arrays)
    if not table.rounds_activations(option.bits):
        return total
    return (total - quadratic.kernel_losses(exact)).clamp_min(0)


def _variance(unit: Unit, at: int, arrays: ArrayStore) -> float:
    """Returns ``E[s^2] / 12``; column scales that came later narrow all samples alike."""
    own = UnitArrays(unit.name, arrays)
    before = _width(own.get(at, "low"), own.get(at, "high"))
    now = _width(*(read_moved(unit, arrays, at, end) for end in ("low", "high")))
    narrowed = now / before if before > 0 else 1.0
    return float(own.get(at, "span")[0]) * (narrowed / _STEPS) ** 2 / 12


def _width(low: np.ndarray, high: np.ndarray) -> float:
    return max(float(high.max()), 0.0) - min(float(low.min()), 0.0)

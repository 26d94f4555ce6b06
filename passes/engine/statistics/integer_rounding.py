"""What rows of integer kernels lose by activations with one int8 step for all of a tensor."""

from __future__ import annotations

import torch

from ....ir import ArrayStore, Capabilities, Option, Unit
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

    Of a product that is ``1/2 g_n |w_n|^2 s^2 / 12``, where ``s`` is the step from the lowest
    to the highest value in calibration; a kernel takes the range of each run, which is no
    wider. What convolutions and LSTMs lose is measured later.

    Args:
        unit: The unit.
        exact: Its weight, rows x columns.
        option: An option with rounded activations.
        quadratic: What errors of its products cost.
        arrays: The ranges of what they read.
        table: Whether other kernels round activations too.
    """
    energy = quadratic.hidden(exact).square().sum(dim=1)
    total = torch.zeros(len(exact))
    for at, rows in enumerate(quadratic.rows):
        if unit.uses[at].kind == "product":
            total += 0.5 * rows * energy * _variance(unit, at, arrays)
    if not table.rounds_activations(option.bits):
        return total
    return (total - quadratic.kernel_losses(exact)).clamp_min(0)


def _variance(unit: Unit, at: int, arrays: ArrayStore) -> float:
    low = min(float(read_moved(unit, arrays, at, "low").min()), 0.0)
    high = max(float(read_moved(unit, arrays, at, "high").max()), 0.0)
    return ((high - low) / _STEPS) ** 2 / 12

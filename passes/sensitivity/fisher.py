"""The predicted divergence: every row's error under GPTQ through its quadratic form."""

from __future__ import annotations

import numpy as np
import torch

from ...ir import Option, Unit
from ..machinery.parallel import for_each
from ..numerics.rounding import Factor, Rounded, as_half, round_rows
from ..numerics.row_hessians import round_parts
from .metric import Asked, Judgement
from .quadratic import Quadratic


def judge(asked: Asked) -> dict[str, Judgement]:
    """Predicts the divergence of every row, and what its kernel adds to it."""
    found = losses(asked)
    return {
        unit.name: Judgement.of_losses(
            found[unit.name] + kernel_losses(unit, asked), unit.shape[1]
        )
        for unit in asked.units
    }


def kernel_losses(unit: Unit, asked: Asked) -> np.ndarray:
    """Returns what kernels that round activations lose: rows x options, nats per token."""
    weight, quadratic = (
        torch.from_numpy(unit.matrix()),
        Quadratic.of(unit, asked.context.arrays),
    )
    table = asked.context.capabilities
    columns = [
        quadratic.kernel_loss(weight, option.group)
        if table.rounds_activations(option.kernel_bits)
        else torch.zeros(len(weight))
        for option in asked.options[unit.name]
    ]
    return torch.stack(columns, dim=1).numpy()


def losses(asked: Asked) -> dict[str, np.ndarray]:
    """Returns what weights lose, ``1/2 g_n d^T H d`` in nats: rows x options for each unit."""

    def of(unit: Unit) -> np.ndarray:
        quadratic = Quadratic.of(unit, asked.context.arrays)
        weight, parts = torch.from_numpy(unit.matrix()), quadratic.parts()
        rows, columns = torch.arange(len(weight)), []
        for option in asked.options[unit.name]:
            if option.is_half:
                columns.append(quadratic.loss(weight, as_half(weight)))
                continue

            def rounded_so(
                part: torch.Tensor, factor: Factor, one: Option = option
            ) -> Rounded:
                return round_rows(part, one.bits, one.group, factor)

            rounded = round_parts(weight, rows, parts, rounded_so)
            columns.append(quadratic.loss(weight, rounded.dequantize(option.group)))
        return torch.stack(columns, dim=1).numpy()

    found = for_each(of, asked.units, asked.context.progress, "trying every width")
    return {unit.name: loss for unit, loss in zip(asked.units, found, strict=True)}

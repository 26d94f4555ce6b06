"""Which input channels of a unit would best stay in 16 bits."""

from __future__ import annotations

import numpy as np
import torch

from ...ir import Capabilities, Unit
from ...ir.analysis.offered import expands_to_floats
from ..engine.statistics.quadratic import Quadratic


def can_keep(unit: Unit, table: Capabilities) -> bool:
    """Tells whether input channels of ``unit`` can be multiplied apart from the others."""
    products = all(use.kind == "product" for use in unit.uses)
    return table.keeps_columns and products and not expands_to_floats(unit, table)


def ranked_columns(unit: Unit, quadratic: Quadratic) -> np.ndarray:
    """Returns the input channels by what rounding them costs, the dearest first, int32."""
    importance = quadratic.row_importance()
    weight = torch.from_numpy(unit.matrix()).to(importance.device)
    cost = quadratic.factor().price * (importance @ weight.square())
    return cost.argsort(descending=True, stable=True).cpu().numpy().astype(np.int32)

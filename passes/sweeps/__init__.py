"""Gathering second moments: two sweeps over the blocks, or measurements in the runtime."""

from .measure import measure
from .moments import MomentFile, UnitMoments, tokens_file
from .objective import Objective, choose_objective
from .sweep import sweep

__all__ = [
    "MomentFile",
    "Objective",
    "UnitMoments",
    "choose_objective",
    "measure",
    "sweep",
    "tokens_file",
]

"""Calibration's Hessians once more, on what the changed blocks before a unit give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from ....ir import ArrayStore, Unit
from ....ir.analysis.attention.binding import Projection
from ....ir.analysis.blocks import Block
from ..execution.samples import Values
from ..numerics.row_hessians import Key, RowHessians
from .local_hessians import SecondMoment, products_in


@dataclass
class WeightedHessians:
    """Gathers block by block, and holds one block at a time.

    Attributes:
        arrays: Supplies the weights of the tokens, sample after sample.
    """

    arrays: ArrayStore
    _moments: list[SecondMoment] = field(default_factory=list)

    def begin(self, block: Block, units: Sequence[Unit]) -> list[ir.Value]:
        """Makes ready for units of a block; returns the values that ``add`` needs."""
        self._moments = [
            SecondMoment(part, self._weights(part)) for part in products_in(block, units)
        ]
        return [one.part.use.activation for one in self._moments]

    def _weights(self, part: Projection) -> torch.Tensor:
        weights = self.arrays.get(f"{part.unit.name}/{part.at}/tokens")
        return torch.from_numpy(weights.astype("float32"))

    def add(self, values: Values) -> None:
        """Adds one sample's run of the block."""
        for one in self._moments:
            one.add(values)

    def end(self) -> dict[Key, RowHessians]:
        """Returns the Hessians to round the units against, and forgets them."""
        found = {(one.part.unit.name, one.part.at): one.result() for one in self._moments}
        self._moments = []
        return found

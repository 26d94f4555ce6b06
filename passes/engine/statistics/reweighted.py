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


@dataclass
class _Weighted:
    """``sum_t c_t x_t x_t^T`` with calibration's ``c_t`` and the ``x_t`` of now."""

    part: Projection
    weights: torch.Tensor
    sum: torch.Tensor
    tokens: int = 0

    def add(self, values: Values) -> None:
        inputs = values.tokens(self.part.use.activation)
        weights = self.weights[self.tokens : self.tokens + len(inputs)]
        self.sum += (inputs * (weights / weights.mean().clamp_min(1e-30))[:, None]).T @ inputs
        self.tokens += len(inputs)


@dataclass
class WeightedHessians:
    """Gathers block by block, and holds one block at a time.

    Attributes:
        arrays: Supplies the weights of the tokens, sample after sample.
    """

    arrays: ArrayStore
    _parts: list[_Weighted] = field(default_factory=list)

    def begin(self, block: Block, units: Sequence[Unit]) -> list[ir.Value]:
        """Makes ready for units of a block; returns the values that ``add`` needs."""
        inside = set(block.nodes)
        self._parts = [
            self._weighted(Projection(unit, at))
            for unit in units
            for at, use in enumerate(unit.uses)
            if use.kind == "product" and use.node in inside
        ]
        return [one.part.use.activation for one in self._parts]

    def _weighted(self, part: Projection) -> _Weighted:
        columns = part.unit.shape[1]
        weights = self.arrays.get(f"{part.unit.name}/{part.at}/tokens")
        return _Weighted(
            part, torch.from_numpy(weights.astype("float32")), torch.zeros(columns, columns)
        )

    def add(self, values: Values) -> None:
        """Adds one sample's run of the block."""
        for one in self._parts:
            one.add(values)

    def end(self) -> dict[Key, RowHessians]:
        """Returns the Hessians to round the units against, and forgets them."""
        found = {
            (one.part.unit.name, one.part.at): RowHessians.single(
                one.sum / max(one.tokens, 1), one.part.unit.shape[0]
            )
            for one in self._parts
        }
        self._parts = []
        return found

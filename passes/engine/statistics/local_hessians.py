"""Hessians of what a unit's own layer gives, gathered from forward runs alone.

For the queries, keys and values of an attention the layer is the attention up to its output
product; for every other product it is the product: ``H = E[x x^T]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from ....ir import Unit
from ....ir.analysis.attention.binding import Attention, NoMatchError, Projection
from ....ir.analysis.blocks import Block
from ..execution.samples import Values
from ..numerics.row_hessians import Key, RowHessians
from ..pipeline.base import Runner
from .attention_core import Core
from .head_hessians import HeadHessians


@dataclass
class _Plain:
    """The second moment of what one product multiplies."""

    part: Projection
    sum: torch.Tensor
    tokens: int = 0

    def add(self, values: Values) -> None:
        inputs = values.tokens(self.part.use.activation)
        self.sum += inputs.T @ inputs
        self.tokens += len(inputs)

    def result(self) -> RowHessians:
        return RowHessians.single(self.sum / max(self.tokens, 1), self.part.unit.shape[0])


@dataclass
class LocalHessians:
    """Gathers block by block, and holds one block at a time.

    Attributes:
        attentions: The recognised attentions.
        runner: Lowers the attentions.
        probes: See ``HeadHessians``.
        seed: Seed of the random signs.
        refused: By node: why a recognised attention counts as plain products after all.
    """

    attentions: Sequence[Attention]
    runner: Runner
    probes: int
    seed: int
    refused: dict[ir.Node, str] = field(default_factory=dict)
    _plain: list[_Plain] = field(default_factory=list)
    _bound: list[HeadHessians] = field(default_factory=list)

    def begin(self, block: Block, units: Sequence[Unit]) -> list[ir.Value]:
        """Makes ready for units of a block; returns the values that ``add`` needs."""
        inside, names = set(block.nodes), {unit.name for unit in units}
        self._bound = []
        for one in self.attentions:
            asked = any(part.unit.name in names for part in one.projections[:3])
            if asked and one.node in inside and one.node not in self.refused:
                self._bind(one, block)
        parts = [
            Projection(unit, at)
            for unit in units
            for at, use in enumerate(unit.uses)
            if use.kind == "product" and use.node in inside
        ]
        self._plain = [_Plain(part, _square(part.unit)) for part in parts]
        wanted = [part.use.activation for part in parts]
        return list(dict.fromkeys([*wanted, *(v for b in self._bound for v in b.core.wanted)]))

    def _bind(self, one: Attention, block: Block) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + block.index)
        try:
            core = Core.lower(one, block, self.runner)
        except NoMatchError as error:
            self.refused[one.node] = str(error)
        else:
            self._bound.append(HeadHessians(core, self.probes, generator))

    def add(self, values: Values) -> None:
        """Adds one sample's run of the block."""
        for plain in self._plain:
            plain.add(values)
        for bound in list(self._bound):
            try:
                bound.add(values)
            except NoMatchError as error:
                self.refused[bound.core.attention.node] = str(error)
                self._bound.remove(bound)

    def end(self) -> dict[Key, RowHessians]:
        """Returns the Hessians to round the units against, and forgets them."""
        found = {(one.part.unit.name, one.part.at): one.result() for one in self._plain}
        for bound in self._bound:
            found |= bound.result()
        self._plain, self._bound = [], []
        return found


def _square(unit: Unit) -> torch.Tensor:
    columns = unit.shape[1]
    return torch.zeros(columns, columns)

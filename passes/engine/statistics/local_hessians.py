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
class SecondMoment:
    """``sum_t c_t x_t x_t^T`` over the tokens ``x_t`` that one product multiplies.

    Attributes:
        part: The product.
        weights: ``c_t`` of all samples, one after the other; None where all are 1.
    """

    part: Projection
    weights: torch.Tensor | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        self._sum: torch.Tensor | None = None

    def add(self, values: Values) -> None:
        """Adds one sample."""
        inputs = values.tokens(self.part.use.activation)
        scaled = inputs
        if self.weights is not None:
            weights = self.weights[self.tokens : self.tokens + len(inputs)]
            weights = weights.to(inputs.device)
            scaled = inputs * (weights / weights.mean().clamp_min(1e-30))[:, None]
        gram = scaled.T @ inputs
        self._sum = gram if self._sum is None else self._sum.add_(gram)
        self.tokens += len(inputs)

    def result(self) -> RowHessians:
        """Returns the mean, for all rows of the unit alike."""
        rows, columns = self.part.unit.shape
        total = self._sum if self._sum is not None else torch.zeros(columns, columns)
        return RowHessians.single(total / max(self.tokens, 1), rows)


def products_in(block: Block, units: Sequence[Unit]) -> list[Projection]:
    """Returns the products of ``units`` in a block."""
    inside = set(block.nodes)
    return [
        Projection(unit, at)
        for unit in units
        for at, use in enumerate(unit.uses)
        if use.kind == "product" and use.node in inside
    ]


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
    _plain: list[SecondMoment] = field(default_factory=list)
    _bound: list[HeadHessians] = field(default_factory=list)

    def begin(self, block: Block, units: Sequence[Unit]) -> list[ir.Value]:
        """Makes ready for units of a block; returns the values that ``add`` needs."""
        inside, names = set(block.nodes), {unit.name for unit in units}
        self._bound = []
        for one in self.attentions:
            asked = any(part.unit.name in names for part in one.projections[:3])
            if asked and one.node in inside and one.node not in self.refused:
                self._bind(one, block)
        self._plain = [SecondMoment(part) for part in products_in(block, units)]
        wanted = [one.part.use.activation for one in self._plain]
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

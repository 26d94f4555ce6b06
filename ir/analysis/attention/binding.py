"""A recognised attention: four projections, and the layout of its heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from ... import Unit, Use

Layout = Literal["heads", "transposed", "flat", "parts"]


class NoMatchError(Exception):
    """Why a node cannot be bound as an attention; never leaves this folder."""


@dataclass(frozen=True)
class Projection:
    """One use of a unit as a projection of an attention.

    Attributes:
        unit: The unit.
        at: Which of its uses.
    """

    unit: Unit
    at: int

    @property
    def use(self) -> Use:
        """The use."""
        return self.unit.uses[self.at]

    @property
    def output(self) -> ir.Value:
        """The output of the product."""
        return self.use.node.outputs[0]


@dataclass(frozen=True)
class Operand:
    """A value that holds the queries, keys or values of all heads.

    Attributes:
        value: The value.
        layout: ``heads``: [..., heads, tokens, size]; ``transposed``: [..., heads, size,
            tokens]; ``flat``: [..., tokens, heads * size]; ``parts``: [..., tokens, heads,
            parts, size].
        heads: Number of heads in it that play this role.
        first: Where the heads begin in ``flat``; which part in ``parts``.
    """

    value: ir.Value
    layout: Layout
    heads: int
    first: int = 0


@dataclass(frozen=True)
class Attention:
    """An attention and the units around it.

    Attributes:
        node: Its softmax, or the operator that contains it.
        query: Makes the queries; may be the same unit as ``key`` and ``value``.
        key: Makes the keys.
        value: Makes the values.
        output: Multiplies the concatenated heads.
        operands: Where the graph holds queries, keys and values by heads.
        heads: Number of query heads.
        kv_heads: Number of key and value heads; each serves ``heads / kv_heads`` queries.
        head_size: Channels of a query.
        value_size: Channels of a value.
        scale: The factor of the scores; None if the graph computes it.
        causal: Whether the graph shows that no query sees a later key.
        masked: Whether anything is added to the scores or hides some.
        rope: How positions turn queries and keys: ``""`` (not), ``fused``, ``operator`` or
            ``decomposed``.
    """

    node: ir.Node
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    operands: tuple[Operand, Operand, Operand]
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    scale: float | None
    causal: bool
    masked: bool
    rope: str

    @property
    def projections(self) -> tuple[Projection, Projection, Projection, Projection]:
        """Query, key, value and output."""
        return self.query, self.key, self.value, self.output


@dataclass(frozen=True)
class Unmatched:
    """A node that looks like attention and is not bound.

    Attributes:
        node: A softmax or a fused operator.
        why: The reason, as users read it.
    """

    node: ir.Node
    why: str

"""Walks between an attention and the products around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from ... import find_units
from ...units import stored_tensor
from .binding import NoMatchError, Projection

# Operators that put channels and tokens elsewhere and change no number.
MOVES = {
    *("Cast", "Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape"),
    *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
}
_SCALES = {"Mul", "Div"}
_SHIFTS = {"Add", "Sub"}
_QUANTIZED = {
    *("MatMulNBits", "MatMulInteger", "MatMulBnb4", "DynamicQuantizeMatMul"),
    *("MatMulIntegerToFloat", "QLinearMatMul", "QGemm"),
}
_PRODUCTS = {"MatMul", "Gemm", "Conv", "Einsum", "FusedMatMul"} | _QUANTIZED
_ENDS_STREAM = {"Shape", "Size"}
_COMPARES = {"Less", "LessOrEqual", "Greater", "GreaterOrEqual"}


class Surroundings:
    """The products of a model and what depends on them.

    Attributes:
        products: By node: the projection that it computes, where its unit can be quantized.
        kept: By node: why a unit that it reads stays in float.
    """

    def __init__(self, model: ir.Model) -> None:
        units = find_units(model)
        self.graph = model.graph
        self.products = {
            use.node: Projection(unit, at)
            for unit in units
            if not unit.reason
            for at, use in enumerate(unit.uses)
            if use.kind == "product"
        }
        self.kept = {
            node: f"{unit.name!r} stays in float: {unit.reason}"
            for unit in units
            if unit.reason
            for node in (*(use.node for use in unit.uses), *unit.refused)
        }
        self._stream: set[ir.Node] = set()
        readers = {use.node for unit in units for use in unit.uses} | set(self.kept)
        for node in model.graph:
            begins = node in readers or node.op_type in _QUANTIZED
            goes_on = node.op_type not in _ENDS_STREAM and bool(self.streamed(node))
            if begins or goes_on:
                self._stream.add(node)

    def in_stream(self, value: ir.Value | None) -> bool:
        """Tells whether ``value`` depends on a product or a lookup."""
        return value is not None and value.producer() in self._stream

    def streamed(self, node: ir.Node) -> list[ir.Value]:
        """Returns the inputs of ``node`` that depend on a product or a lookup."""
        return [value for value in node.inputs if value is not None and self.in_stream(value)]

    def between(self, value: ir.Value) -> tuple[list[Projection], list[ir.Node]]:
        """Walks from ``value`` back to the nearest products.

        Returns:
            The products, and the nodes on the way, nearest first.

        Raises:
            NoMatchError: Something else than a product of a unit is at the end.
        """
        found: dict[ir.Node, Projection] = {}
        passed: dict[ir.Node, None] = {}
        todo = [value]
        while todo:
            node = todo.pop(0).producer()
            if node is None or node not in self._stream or node in passed or node in found:
                continue
            if node in self.products:
                found[node] = self.products[node]
            elif node in self.kept:
                raise NoMatchError(f"they come from {label(node)}, and {self.kept[node]}")
            elif node.op_type in _PRODUCTS and len(self.streamed(node)) < 2:
                raise NoMatchError(
                    f"they come from {label(node)}, which is not a unit that can be quantized"
                )
            else:
                passed[node] = None
                todo += self.streamed(node)
        return list(found.values()), list(passed)

    def source(self, value: ir.Value, role: str) -> tuple[Projection, list[ir.Node]]:
        """Returns the one product that ``value`` comes from, and the nodes between.

        Raises:
            NoMatchError: There is none, or there are several.
        """
        try:
            found, passed = self.between(value)
        except NoMatchError as error:
            raise NoMatchError(f"no product of a unit makes its {role}: {error}") from error
        if len(found) != 1:
            names = ", ".join(sorted({repr(one.unit.name) for one in found})) or "none"
            raise NoMatchError(
                f"its {role} come from {len(found)} products ({names}), not one"
            )
        return found[0], passed

    def linear_source(self, value: ir.Value, role: str) -> tuple[Projection, list[ir.Node]]:
        """Returns the same if ``value`` is linear in the output of the product."""
        product, passed = self.source(value, role)
        for node in passed:
            if not self._is_linear(node):
                raise NoMatchError(
                    f"its {role} are not linear in their product: {label(node)}"
                )
        return product, passed

    def _is_linear(self, node: ir.Node) -> bool:
        if node.op_type in MOVES:
            return True
        scales = node.op_type == "Mul" or (
            node.op_type == "Div" and self.in_stream(node.inputs[0])
        )
        alone = len(self.streamed(node)) == 1
        return node.op_type in _SHIFTS or (scales and alone)

    def mixer(self, value: ir.Value) -> Projection:
        """Returns the product that multiplies ``value`` by the output weight.

        Raises:
            NoMatchError: Something other than moves stands between, or no single product.
        """
        while True:
            readers = [one for one in value.consumers() if one.op_type not in _ENDS_STREAM]
            if len(readers) != 1 or value.is_graph_output():
                many = ", ".join(label(one) for one in readers) or "nothing"
                raise NoMatchError(f"its heads are read by {many}, not by one product")
            node = readers[0]
            if node in self.products and value in node.inputs:
                return self.products[node]
            if node.op_type not in MOVES or len(self.streamed(node)) != 1:
                why = f", and {self.kept[node]}" if node in self.kept else ""
                raise NoMatchError(
                    f"{label(node)} stands between its heads and an output product{why}"
                )
            value = node.outputs[0]

    def scale(self, passed: Iterable[ir.Node]) -> float | None:
        """Returns by how much the nodes nearest to an operand scale it together.

        None when they scale it by a number that only a run of the graph tells.
        """
        total = 1.0
        for node in passed:
            if node.op_type in _SCALES:
                other = next((one for one in node.inputs if not self.in_stream(one)), None)
                tensor = stored_tensor(other) if other is not None else None
                if tensor is not None and tensor.size == 1:
                    number = float(tensor.numpy().reshape(-1)[0])
                    total *= 1 / number if node.op_type == "Div" else number
                elif other is not None and not (other.shape is not None and len(other.shape)):
                    return None
                else:
                    break
            elif node.op_type not in MOVES | _SHIFTS:
                break
        return total


def label(node: ir.Node) -> str:
    """Names a node the way reasons do."""
    return f"{node.op_type} {node.name!r}"


def rotation(passed: Iterable[ir.Node]) -> str:
    """Tells how the nodes between a product and an attention turn by position."""
    kinds = {node.op_type for node in passed}
    if "RotaryEmbedding" in kinds:
        return "operator"
    return "decomposed" if {"Neg", "Concat", "Mul", "Add"} <= kinds else ""


def is_causal(mask: ir.Value) -> bool:
    """Tells whether a mask is made by Trilu, or by comparing positions with positions."""
    return any(
        node.op_type == "Trilu"
        or (node.op_type in _COMPARES and all(_is_range(one) for one in node.inputs))
        for node in _ancestors(mask)
    )


def _is_range(value: ir.Value | None) -> bool:
    tensor = stored_tensor(value) if value is not None else None
    if tensor is not None:
        return bool(tensor.size > 1 and np.unique(tensor.numpy()).size > 1)
    return value is not None and any(
        node.op_type in ("Range", "CumSum") for node in _ancestors(value)
    )


def _ancestors(value: ir.Value) -> Iterator[ir.Node]:
    seen: set[ir.Node] = set()
    todo = [value.producer()]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [one.producer() for one in node.inputs if one is not None]

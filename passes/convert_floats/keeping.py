"""Which nodes go on computing in float32, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from ...ir import StoredPart, note_of
from ...ir.units import stored_tensor
from .integer_regions import integer_regions
from .measured import Seen
from .rounding import LARGEST, underflows
from .typing_rules import is_float32, obstacle

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits"}
_LARGE = 256  # entries of what a product is a layer with
_SUMS = {"ReduceMean", "ReduceSum"}
# Between a denominator that something keeps from being zero, and the division by it.
_DENOMINATORS = {"Add", "Clip", "Expand", "Identity", "Max", "Pow", "Reciprocal", "Sqrt"}


@dataclass
class Keeping:
    """The nodes that stay in float32.

    Attributes:
        opset: Of the graph.
        reasons: By node.
    """

    opset: int
    reasons: dict[ir.Node, str] = field(default_factory=dict)

    def by_rule(self, nodes: Sequence[ir.Node]) -> None:
        """Keeps what has no form in float16, and constants that would become zero."""
        for node in integer_regions(nodes):
            self.reasons[node] = "it meets integers, with a bias whose scale float16 lacks"
        for node in nodes:
            why = obstacle(node, self.opset)
            note = note_of(node, StoredPart)
            if note is not None and note.role == "expansion":
                why = "it makes a weight of codes when the model is loaded"
            if why:
                self.reasons[node] = why
                continue
            if _is_summed_square(node):
                self._keep_denominator(node, "sums of squares outgrow float16 without warning")
            for value in node.inputs:
                if is_float32(value) and _vanishes(value):
                    self._keep_denominator(node, f"{value.name!r} would become zero")

    def by_measure(
        self, nodes: Iterable[ir.Node], seen: Seen, margin: float, error: float
    ) -> None:
        """Keeps what would overflow, or be computed from numbers that are too coarse."""
        for node in nodes:
            for value in (*node.inputs, *node.outputs):
                if is_float32(value) and seen.overflows(value, margin):
                    reached = f"{value.name!r} reached {seen.largest[value]:.4g}"
                    self.reasons.setdefault(node, f"{reached}, float16 ends at {LARGEST:g}")
            found = seen.errors.get(node, 0.0)
            if found > error:
                self._keep_with_sources(
                    node, f"float16 would change its result by {found:.2g}"
                )

    def _keep_with_sources(self, node: ir.Node, why: str) -> None:
        """Keeps a node, and what makes the numbers that it reads, back to layers."""
        self.reasons.setdefault(node, why)
        waiting, known = [node], {node}
        while waiting:
            reader = waiting.pop()
            for value in reader.inputs:
                source = value.producer() if value is not None and is_float32(value) else None
                if source is None or source in known or _is_layer(source):
                    continue
                known.add(source)
                waiting.append(source)
                self.reasons.setdefault(source, f"{reader.name!r} needs its result as it is")

    def _keep_denominator(self, node: ir.Node, why: str) -> None:
        """Keeps a node, and what follows up to the division by its result."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            self.reasons.setdefault(node, why)
            if node.op_type in _DENOMINATORS | _SUMS or _is_summed_square(node):
                readers = [usage.node for value in node.outputs for usage in value.uses()]
                waiting += [one for one in readers if one not in self.reasons]


def _is_summed_square(node: ir.Node) -> bool:
    """Tells whether a node makes squares for a norm.

    They grow with the square of what samples showed, and a single large number rules the sum:
    no margin is enough.
    """
    if node.op_type in ("ReduceL2", "ReduceSumSquare"):
        return True
    if node.op_type == "Mul":
        squares = node.inputs[0] is node.inputs[1]
    else:
        exponent = node.inputs[1] if node.op_type == "Pow" else None
        tensor = stored_tensor(exponent) if exponent is not None else None
        squares = tensor is not None and tensor.size == 1 and float(tensor.numpy().max()) == 2
    readers = [usage.node.op_type for value in node.outputs for usage in value.uses()]
    return squares and any(one in _SUMS for one in readers)


def _vanishes(value: ir.Value) -> bool:
    """Tells whether a small constant has a number that is not zero, but would become so."""
    tensor = stored_tensor(value)
    return tensor is not None and tensor.size < _LARGE and underflows(tensor.numpy())


def _is_layer(node: ir.Node) -> bool:
    """Tells whether a node multiplies by weights: what it makes is rounded anyway."""
    if node.op_type not in _PRODUCTS:
        return False
    for value in node.inputs[1:]:
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            return True
        tensor = stored_tensor(value) if value is not None else None
        if tensor is not None and tensor.size >= _LARGE:
            return True
    return False

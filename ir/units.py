"""Units: one stored weight and the nodes that consume it.

A weight is an initializer, or the output of a Constant node (which ``normalize`` turns into an
initializer), that a MatMul, Gemm, Conv, Gather or another multiplying operator reads, directly
or through Transpose, Identity and Cast. A table that serves both as embedding and as output
head is one unit with two uses. A weight that no quantized kernel can serve, or that is read
inside control flow, is a unit too; it has a reason to stay in float. What nodes of a lowered
unit read is part of that unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from .annotation import note_of
from .errors import InternalError
from .operands import all_graphs, subgraphs_of
from .vocabulary import StoredPart

SMALLEST_UNIT = 4096
FLOAT_TYPES = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)
_LARGEST_WEIGHT = 65504.0 * 128  # what a code of 8 bits and a float16 scale can stand for
VIEWS = {"Identity", "Transpose", "Cast"}

# Inputs that carry weights. What else reads a constant (a mask that is added, a table of
# rotations inside an attention) does not make it a weight.
_WEIGHT_INPUTS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "MatMul"): (0, 1),
    ("", "Gemm"): (0, 1),
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "Gather"): (0,),
    ("", "Einsum"): (0, 1, 2, 3),
    ("", "LSTM"): (1, 2),
    ("", "GRU"): (1, 2),
    ("", "RNN"): (1, 2),
    ("com.microsoft", "Attention"): (1,),
    ("com.microsoft", "EmbedLayerNormalization"): (2, 3, 4),
    ("com.microsoft", "FusedConv"): (1,),
    ("com.microsoft", "FusedGemm"): (0, 1),
    ("com.microsoft", "FusedMatMul"): (0, 1),
    ("com.microsoft", "MoE"): (2, 4, 6),
    ("com.microsoft", "TransposeMatMul"): (0, 1),
}

Kind = Literal["product", "lookup", "conv"]


@dataclass(frozen=True)
class Use:
    """One node that reads the weight.

    Attributes:
        node: The consumer.
        index: Which of its inputs carries the weight (possibly through views).
        kind: ``product`` for MatMul and Gemm, ``lookup`` for Gather, ``conv`` for Conv.
        row_axis: Axis of the *stored* tensor that counts output channels or table rows.
    """

    node: ir.Node
    index: int
    kind: Kind
    row_axis: int

    @property
    def activation(self) -> ir.Value:
        """The input of the product, or the ids of the lookup."""
        value = self.node.inputs[1 - self.index]
        assert value is not None
        return value


@dataclass(frozen=True)
class Unit:
    """One stored weight and its consumers.

    Attributes:
        weight: The initializer, or the output of a Constant node.
        uses: Its consumers that a quantized weight can serve, in execution order, if any.
        views: Transpose, Identity and Cast nodes between the initializer and its consumers.
        reason: Why the unit has to stay in float; empty when it can be quantized.
        refused: Nodes of the main graph that read it in another way, in execution order. For a
            reader inside control flow this is the If, Loop or Scan around it.
    """

    weight: ir.Value
    uses: tuple[Use, ...]
    views: tuple[ir.Node, ...]
    reason: str
    refused: tuple[ir.Node, ...] = ()

    @property
    def name(self) -> str:
        """Name of the stored weight."""
        return str(self.weight.name)

    @property
    def anchor(self) -> ir.Node:
        """The node that carries the unit's annotations: its first consumer."""
        return self.uses[0].node if self.uses else self.refused[0]

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The stored value."""
        tensor = stored_tensor(self.weight)
        if tensor is None:
            raise InternalError(f"unit {self.name!r} has no stored value")
        return tensor

    @property
    def row_axis(self) -> int:
        """Axis of the stored tensor that counts rows (the first for a unit without uses)."""
        return self.uses[0].row_axis if self.uses else 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (output channels) and columns (input channels)."""
        dims = self.tensor.shape.numpy()
        size = int(np.prod(dims, dtype=np.int64))
        rows = dims[self.row_axis] if self.uses else size // max(dims[-1], 1)
        return int(rows), size // max(int(rows), 1)

    @property
    def size(self) -> int:
        """Number of weights."""
        rows, columns = self.shape
        return rows * columns

    def matrix(self) -> np.ndarray:
        """Returns a copy of the weight as float32, rows x columns."""
        array = self.tensor.numpy()
        moved = np.moveaxis(array, self.row_axis, 0).reshape(self.shape)
        return np.array(moved, dtype=np.float32, order="C")

    def replace(self, matrix: np.ndarray) -> None:
        """Stores ``matrix`` (rows x columns) as the weight's new value, in its old layout."""
        array = self.stored_layout(matrix.astype(self.tensor.dtype.numpy()))
        _store(self.weight, ir.Tensor(array, name=self.weight.name))

    def stored_layout(self, matrix: np.ndarray) -> np.ndarray:
        """Returns ``matrix`` (rows x columns) in the shape and the order of the weight."""
        dims = list(self.tensor.shape.numpy())
        moved = [dims[self.row_axis], *dims[: self.row_axis], *dims[self.row_axis + 1 :]]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, self.row_axis))


def stored_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Returns the tensor of an initializer or of the output of a Constant node, or None."""
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return value.const_value
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref():
        return None
    return attribute.as_tensor()


def _store(value: ir.Value, tensor: ir.Tensor[np.ndarray]) -> None:
    node = value.producer()
    value.const_value = tensor
    if node is not None:
        node.attributes["value"] = ir.AttrTensor("value", tensor)


@dataclass(frozen=True)
class _Reader:
    """A node that reads a weight: how, or why not.

    Attributes:
        node: The reader, in whatever graph.
        use: How it uses the weight, if a quantized weight can serve it.
        refusal: Why it cannot; empty with a use.
        multiplies: Whether reading the constant like this makes it a weight.
    """

    node: ir.Node
    use: Use | None
    refusal: str
    multiplies: bool


def _readers(
    value: ir.Value, rank: int, views: list[ir.Node], noted: bool
) -> Iterator[_Reader]:
    """Follows ``value`` through views, which it collects, to the nodes that read it."""
    # The axes map those of the value at hand to those of the stored tensor.
    todo = [(value, tuple(range(rank)))]
    while todo:
        seen, axes = todo.pop(0)
        for usage in seen.uses():
            node = usage.node
            if _is_view(node):
                views.append(node)
                moved = axes
                if node.op_type == "Transpose":
                    perm = node.attributes.get_ints("perm", list(reversed(range(len(axes)))))
                    moved = tuple(axes[p] for p in perm)
                todo.append((node.outputs[0], moved))
            else:
                yield _reader(node, usage.idx, axes, noted)


def _is_view(node: ir.Node) -> bool:
    """Tells whether a node passes on the same numbers; a Cast to integers cuts them off."""
    if node.op_type not in VIEWS or node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type != "Cast" or node.attributes.get_int("to", 0) in FLOAT_TYPES


def _reader(node: ir.Node, index: int, axes: tuple[int, ...], noted: bool) -> _Reader:
    domain = "" if node.domain == "ai.onnx" else node.domain
    multiplies = index in _WEIGHT_INPUTS.get((domain, node.op_type), ())
    if noted and note_of(node, StoredPart) is not None:
        multiplies = False  # it reads a part of a unit that is stored in codes
    use = _use(node, index, axes) if multiplies and not domain else None
    if use is not None:
        return _Reader(node, use, "", True)
    label = f"{node.op_type} {node.name!r}"
    if node.op_type in ("MatMul", "Gemm") and index == 0:
        return _Reader(node, None, f"it is the left operand of {label}", multiplies)
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return _Reader(node, None, f"{label} with transA has no quantized kernel", multiplies)
    if multiplies and _meets_weight(node):
        return _Reader(node, None, f"{label} multiplies it by another weight", multiplies)
    refusal = f"{label} reads it, and that has no quantized kernel"
    return _Reader(node, None, refusal, multiplies)


def _use(node: ir.Node, index: int, axes: tuple[int, ...]) -> Use | None:
    if _meets_weight(node):
        return None
    if node.op_type == "MatMul" and index == 1 and len(axes) == 2:
        return Use(node, 1, "product", axes[1])
    if node.op_type == "Gemm" and index == 1 and not node.attributes.get_int("transA", 0):
        row = axes[0] if node.attributes.get_int("transB", 0) else axes[1]
        return Use(node, 1, "product", row)
    if node.op_type == "Gather" and len(axes) == 2:
        first = node.attributes.get_int("axis", 0) % len(axes) == 0
        return Use(node, 0, "lookup", axes[0]) if first else None
    if node.op_type == "Conv":
        return Use(node, 1, "conv", axes[0])
    return None


def _meets_weight(node: ir.Node) -> bool:
    """Tells whether a product's left operand is a weight too, so that it has two anchored."""
    left = node.inputs[0]
    return node.op_type in ("MatMul", "Gemm") and left is not None and _is_large(left)


def _reason(uses: list[Use], refusals: list[str]) -> str:
    if refusals:
        return refusals[0]
    if len({use.row_axis for use in uses}) > 1:
        return "its consumers read it along different axes"
    return ""


class _Search:
    """Finds the units of one model.

    Attributes:
        order: Execution order of the main graph's nodes.
        around: For every nested graph, the node that holds it.
        noted: Whether notes may say that a node reads a part of a stored unit.
    """

    def __init__(self, model: ir.Model, noted: bool) -> None:
        self.noted = noted
        self.order = {node: at for at, node in enumerate(model.graph)}
        self.graphs = list(all_graphs(model.graph))
        self.around = {
            inner: node
            for graph in self.graphs
            for node in graph
            for inner in subgraphs_of(node)
        }

    def weights(self) -> Iterator[ir.Value]:
        """Yields every constant that is large enough and of a float type."""
        for graph in self.graphs:
            yield from filter(_is_large, graph.initializers.values())
            for node in graph:
                if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                    yield from filter(_is_large, node.outputs)

    def holder(self, node: ir.Node) -> ir.Node:
        """Returns the node of the main graph in which ``node`` is, or ``node`` itself."""
        while node.graph in self.around:
            node = self.around[node.graph]
        return node

    def _placed(self, reader: _Reader) -> _Reader:
        holder = self.holder(reader.node)
        if holder is reader.node:
            return reader
        where = f"it is read inside the {holder.op_type} {holder.name!r}"
        return _Reader(holder, None, where, reader.multiplies)

    def unit(self, weight: ir.Value) -> Unit | None:
        """Returns the unit of ``weight``; None if it is a mask or nothing multiplies by it."""
        tensor = stored_tensor(weight)
        assert tensor is not None
        views: list[ir.Node] = []
        found = _readers(weight, len(tensor.shape), views, self.noted)
        readers = [self._placed(one) for one in found]
        if not any(reader.multiplies for reader in readers):
            return None
        readers.sort(key=lambda reader: self.order.get(reader.node, -1))
        uses = [reader.use for reader in readers if reader.use is not None]
        if {use.kind for use in uses} == {"lookup"} and _rules_out(tensor):
            return None
        refusals = [reader.refusal for reader in readers if reader.refusal]
        if (
            any(view.outputs[0].is_graph_output() for view in views)
            or weight.is_graph_output()
        ):
            refusals.append("the weight is an output of the model")
        refused = dict.fromkeys(reader.node for reader in readers if reader.use is None)
        reason = _reason(uses, refusals)
        return Unit(weight, tuple(uses), tuple(views), reason, tuple(refused))


def _rules_out(table: ir.TensorProtocol) -> bool:
    """Tells whether a table is one of masks: its first or last row has entries like -inf."""
    entries = table.numpy()
    ends = np.stack([entries[0], entries[-1]]).astype(np.float64)
    return bool((np.abs(ends) > _LARGEST_WEIGHT).any())


def _is_large(value: ir.Value) -> bool:
    tensor = stored_tensor(value)
    if tensor is None or tensor.dtype not in FLOAT_TYPES:
        return False
    return len(tensor.shape) >= 2 and tensor.size >= SMALLEST_UNIT


def find_units(model: ir.Model, *, noted: bool = True) -> list[Unit]:
    """Returns the units of ``model`` in execution order of their anchors.

    Only float weights of rank 2 or more with at least ``SMALLEST_UNIT`` entries count.

    Args:
        model: The graph.
        noted: Whether its notes are our own. In a file from outside, a note must not hide a
            weight.
    """
    search = _Search(model, noted)
    found = (search.unit(weight) for weight in search.weights())
    units = [unit for unit in found if unit is not None]
    return sorted(units, key=lambda unit: (search.order.get(unit.anchor, -1), unit.name))


def quantizable(model: ir.Model) -> list[Unit]:
    """Returns the units that have no reason to stay in float."""
    return [unit for unit in find_units(model) if not unit.reason]

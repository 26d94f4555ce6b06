"""Finds the units of a graph.

A weight is an initializer, or the output of a Constant node (which ``normalize`` turns into an
initializer), that a MatMul, Gemm, Conv, Gather or another multiplying operator reads, directly
or through Transpose, Identity and Cast. A table that serves both as embedding and as output
head is one unit with two uses. Where kernels of codes can serve all readers of a weight, its
uses say which; otherwise every use is an ``array``. What nodes of a lowered unit read is part
of that unit. A small weight is an array too: expanding it costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from .annotation import note_of
from .operands import all_graphs, subgraphs_of
from .units import FLOAT_TYPES, SMALLEST_UNIT, VIEWS, Unit, Use, stored_tensor
from .vocabulary import StoredPart

_LARGEST_WEIGHT = 65504.0 * 128  # what a code of 8 bits and a float16 scale can stand for
_SMALLEST_KERNEL = 4096  # entries; a weight with fewer is not worth a kernel's nodes
_SHORTEST_ROW = 32  # columns that a row should have where any axis may count rows
# A filter of 3 x 3: channels differ so much in size that scales of their own are worth it.
_SHORTEST_FILTER = 9

# Inputs that carry weights. What else reads a constant (a mask that is added, a table of
# rotations inside an attention) does not make it a weight.
_WEIGHT_INPUTS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "MatMul"): (0, 1),
    ("", "Gemm"): (0, 1),
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "Gather"): (0,),
    ("", "GatherND"): (0,),
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
# Axes of output channels, of weights that only arrays can store.
_ROW_AXES = {
    ("ConvTranspose", 1): 1,
    ("LSTM", 1): 1,
    ("LSTM", 2): 1,
    ("GRU", 1): 1,
    ("GRU", 2): 1,
    ("RNN", 1): 1,
    ("RNN", 2): 1,
    ("MatMul", 0): -2,
    ("MatMul", 1): -1,
    ("Attention", 1): -1,
    ("MoE", 2): 1,
    ("MoE", 4): 1,
    ("MoE", 6): 1,
}
# What reads numbers as numbers: rounding them changes more than their size.
_EXACT = {
    "Cast",  # to integers; others are views
    "DequantizeLinear",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "QuantizeLinear",
}


@dataclass(frozen=True)
class _Reader:
    """A node that reads a weight: how, or why not.

    Attributes:
        node: The reader, in whatever graph.
        use: How it uses the weight, if codes can stand for the weight.
        refusal: Why they cannot; empty with a use.
        multiplies: Whether reading the constant like this makes it a weight.
    """

    node: ir.Node
    use: Use | None
    refusal: str
    multiplies: bool


def _readers(weight: ir.Value, dims: tuple[int, ...], noted: bool) -> Iterator[_Reader]:
    """Follows ``weight`` through views to the nodes that read it."""
    # The axes map those of the value at hand to those of the stored tensor.
    todo = [(weight, tuple(range(len(dims))))]
    while todo:
        seen, axes = todo.pop(0)
        for usage in seen.uses():
            node = usage.node
            if is_view(node):
                moved = axes
                if node.op_type == "Transpose":
                    perm = node.attributes.get_ints("perm", list(reversed(range(len(axes)))))
                    moved = tuple(axes[p] for p in perm)
                todo.append((node.outputs[0], moved))
            else:
                yield _reader(node, usage.idx, axes, dims, noted)


def _views(weight: ir.Value) -> tuple[ir.Node, ...]:
    """Returns the views of ``weight``, and theirs."""
    views: list[ir.Node] = []
    todo = [weight]
    while todo:
        found = [usage.node for usage in todo.pop(0).uses() if is_view(usage.node)]
        views += found
        todo += [view.outputs[0] for view in found]
    return tuple(views)


def is_view(node: ir.Node) -> bool:
    """Tells whether a node passes on the same numbers; a Cast to integers cuts them off."""
    if node.op_type not in VIEWS or node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type != "Cast" or node.attributes.get_int("to", 0) in FLOAT_TYPES


def multiplies(node: ir.Node, index: int) -> bool:
    """Tells whether reading a constant as this input makes it a weight."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return index in _WEIGHT_INPUTS.get((domain, node.op_type), ())


def _reader(
    node: ir.Node, index: int, axes: tuple[int, ...], dims: tuple[int, ...], noted: bool
) -> _Reader:
    is_weight = multiplies(node, index)
    label = f"{node.op_type} {node.name!r}"
    if noted and note_of(node, StoredPart) is not None:
        refusal = f"{label} reads it as a part of a unit that is stored in codes"
        return _Reader(node, None, refusal, False)
    if not is_weight and node.op_type in _EXACT:
        return _Reader(node, None, f"{label} needs its exact numbers", False)
    standard = node.domain in ("", "ai.onnx")
    least = _SMALLEST_KERNEL
    if (
        node.op_type == "Conv" and axes
    ):  # where integers pay, they do so by the number of pixels
        least = min(least, _SHORTEST_FILTER * dims[axes[0]])
    can_pay = is_weight and standard and prod(dims) >= least
    use = _kernel_use(node, index, axes) if can_pay else None
    return _Reader(
        node,
        use or Use(node, index, "array", _array_axis(node, index, axes, dims)),
        "",
        is_weight,
    )


def _kernel_use(node: ir.Node, index: int, axes: tuple[int, ...]) -> Use | None:
    """Returns the use that some target has a kernel of codes for, or else None."""
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


def _array_axis(
    node: ir.Node, index: int, axes: tuple[int, ...], dims: tuple[int, ...]
) -> int:
    """Returns the axis of the stored tensor whose entries are to have scales of their own."""
    if node.op_type == "Gemm":
        turned = node.attributes.get_int("transB" if index else "transA", 0) != 0
        return axes[0 if turned == bool(index) else 1]
    if (
        node.op_type in ("Conv", "FusedConv")
        and prod(dims) >= _SHORTEST_FILTER * dims[axes[0]]
    ):
        return axes[0]
    known = _ROW_AXES.get((node.op_type, index))
    if known is not None and -len(axes) <= known < len(axes):
        return axes[known]
    long = (
        at
        for at in range(len(dims))
        if dims[at] > 1 and prod(dims) >= _SHORTEST_ROW * dims[at]
    )
    return next(long, 0)


def _meets_weight(node: ir.Node) -> bool:
    """Tells whether a product's left operand is a weight too, so that it has two anchored."""
    left = node.inputs[0]
    return node.op_type in ("MatMul", "Gemm") and left is not None and _is_large(left)


def _agreed(uses: list[Use]) -> tuple[Use, ...]:
    """Returns the uses as they are if codes in one order serve all of them, else as arrays."""
    whole = any(use.kind == "array" for use in uses)
    if not whole and len({use.row_axis for use in uses}) <= 1:
        return tuple(uses)
    return tuple(replace(use, kind="array", row_axis=uses[0].row_axis) for use in uses)


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

    def _placed(self, reader: _Reader) -> _Reader:
        """Returns the reader as the main graph sees it."""
        holder = reader.node
        while holder.graph in self.around:
            holder = self.around[holder.graph]
        if holder is reader.node:
            return reader
        use = reader.use and replace(reader.use, node=holder, kind="array")
        return replace(reader, node=holder, use=use)

    def unit(self, weight: ir.Value) -> Unit | None:
        """Returns the unit of ``weight``; None if it is a mask or nothing multiplies by it."""
        tensor = stored_tensor(weight)
        assert tensor is not None
        dims = tuple(int(dim) for dim in tensor.shape.numpy())
        placed = [self._placed(one) for one in _readers(weight, dims, self.noted)]
        readers = [one for one in placed if one.node in self.order]  # not of removed graphs
        if not any(reader.multiplies for reader in readers):
            return None
        readers.sort(key=lambda reader: self.order.get(reader.node, -1))
        uses = _agreed([reader.use for reader in readers if reader.use is not None])
        if {use.kind for use in uses} <= {"lookup", "array"} and _rules_out(tensor):
            return None
        refusals = [reader.refusal for reader in readers if reader.refusal]
        views = _views(weight)
        if any(value.is_graph_output() for value in (weight, *(v.outputs[0] for v in views))):
            refusals.append("the weight is an output of the model")
        if weight.graph is not None and weight.graph in self.around:
            refusals.append(f"it is stored inside the {readers[0].node.op_type}")
        refused = dict.fromkeys(reader.node for reader in readers if reader.use is None)
        return Unit(weight, uses, views, next(iter(refusals), ""), tuple(refused))


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

"""A graph without its notes: what must not change when a pass only annotates or rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx_ir as ir

from ....ir import all_graphs, all_nodes

_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


@dataclass(frozen=True)
class Structure:
    """Nodes and constants of a model. Tensors are shared, so it costs next to nothing.

    Attributes:
        nodes: In execution order: operator, names of inputs and outputs, attributes.
        constants: Tensors of initializers by name.
        ends: Names of the graph's inputs and outputs, and the opsets.
    """

    nodes: tuple[tuple[Any, ...], ...]
    constants: dict[str, ir.TensorProtocol]
    ends: tuple[Any, ...]

    @classmethod
    def of(cls, model: ir.Model, weights: Collection[str] = ()) -> Structure:
        """Looks at a model.

        Args:
            model: The graph.
            weights: Initializers that may change: only their shapes are kept, and a Cast that
                widens one that became float16 counts as the weight itself.
        """
        constants = {
            str(name): value.const_value
            for graph in all_graphs(model.graph)
            for name, value in graph.initializers.items()
            if value.const_value is not None and name not in weights
        }
        ends = [
            (str(one.name), one.dtype) for one in (*model.graph.inputs, *model.graph.outputs)
        ]
        opsets = tuple(sorted(model.opset_imports.items()))
        return cls(tuple(_nodes(model, weights)), constants, (tuple(ends), opsets))

    def change_to(self, other: Structure) -> str:
        """Returns what is different in ``other``, in words; empty when nothing is."""
        if self.ends != other.ends:
            return "the inputs, the outputs or the opset of the graph changed"
        for old, new in zip_longest(self.nodes, other.nodes):
            if old != new and not (old and new and _same_nodes(old, new)):
                return _told(old, new)
        for name in self.constants.keys() | other.constants.keys():
            if not is_same_tensor(self.constants.get(name), other.constants.get(name)):
                return f"constant {name!r} changed"
        return ""


def _nodes(model: ir.Model, weights: Collection[str]) -> Iterator[tuple[Any, ...]]:
    widened: dict[ir.Value, str] = {}

    def name_of(value: ir.Value | None) -> str | None:
        return None if value is None else widened.get(value, str(value.name))

    for node in _ordered(model):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.name in weights:
            # A weight that was float16 all along keeps its Cast, before and after alike.
            widened[node.outputs[0]] = str(source.name)
            continue
        holds_weight = node.op_type == "Constant" and node.outputs[0].name in weights
        attributes = () if holds_weight else node.attributes.values()
        yield (
            str(node.name),
            (node.domain, node.op_type, node.overload, node.version),
            tuple(map(name_of, node.inputs)),
            tuple(map(name_of, node.outputs)),
            tuple(one for one in attributes if one.type not in _GRAPHS),
        )


def _ordered(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph:
        yield from all_nodes([node])


def _same_nodes(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """Compares attributes by value where they are not the same objects."""
    if old[:-1] != new[:-1] or len(old[-1]) != len(new[-1]):
        return False
    return all(
        one is two or (one.name == two.name and _same_attribute(one, two))
        for one, two in zip(old[-1], new[-1], strict=True)
    )


def _same_attribute(one: ir.Attr, two: ir.Attr) -> bool:
    if one.type == two.type == ir.AttributeType.TENSOR:
        return is_same_tensor(one.as_tensor(), two.as_tensor())
    return bool(one.type == two.type and one.value == two.value)


def is_same_tensor(one: ir.TensorProtocol | None, two: ir.TensorProtocol | None) -> bool:
    """Tells whether two tensors are the same object, or equal to the last bit."""
    if one is two or one is None or two is None:
        return one is two
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return np.array_equal(_bytes(one), _bytes(two))


def _bytes(tensor: ir.TensorProtocol) -> np.ndarray:
    return np.frombuffer(tensor.tobytes(), dtype=np.uint8)


def _told(old: tuple[Any, ...] | None, new: tuple[Any, ...] | None) -> str:
    if old is None or new is None:
        what, one = ("is new", new) if old is None else ("is gone", old)
        assert one is not None
        return f"{one[1][1]} {one[0]!r} {what}"
    return f"{old[1][1]} {old[0]!r} changed, or another node stands in its place"

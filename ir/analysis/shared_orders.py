"""Shared orders: output channels that only elementwise operations carry to other products.

Between the products that make an activation (gate and up, or fc1) and those that multiply it
(down, or fc2), nothing depends on *which* channel it handles, so the channels may stand in any
order, as long as everybody uses the same one::

    f(x A[:, p] + a[p]) B[p, :]  =  f(x A + a) B        for any order p of the channels

The values that must agree are a connected component of the graph whose edges are elementwise
operations. A component is of use when all that enters it is made by products or constant, and
all that leaves it is multiplied by a weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir

from ..unit_search import find_units
from ..units import Unit, stored_tensor

# Operators that treat every element alike, wherever it stands on the last axis.
_ELEMENTWISE = {
    "": {
        *("Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu"),
        *("Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
        *("HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual"),
        *(
            "Log",
            "Max",
            "Mean",
            "Min",
            "Mish",
            "Mod",
            "Mul",
            "Neg",
            "Not",
            "Or",
            "PRelu",
            "Pow",
        ),
        *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin"),
        *("Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu"),
        *("Where", "Xor"),
    },
    "com.microsoft": {"BiasGelu", "FastGelu", "Gelu", "QuickGelu"},
}
# Operators that leave the last axis alone if the result still has as many channels there.
_VIEWS = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class SharedOrder:
    """Channels whose order is free, and everything that has to use the same order.

    Attributes:
        producers: Units whose rows are the channels, in execution order.
        consumers: Units whose columns are the channels, in execution order.
        constants: Initializers with one entry for each channel on their last axis.
    """

    producers: tuple[Unit, ...]
    consumers: tuple[Unit, ...]
    constants: tuple[ir.Value, ...]

    @property
    def name(self) -> str:
        """Name of the group: that of its first producer."""
        return self.producers[0].name


@dataclass(frozen=True)
class FixedOrder:
    """Units whose output channels have to stay in their order.

    Attributes:
        units: The units.
        why: What forbids another order.
    """

    units: tuple[Unit, ...]
    why: str


@dataclass(frozen=True)
class SharedOrders:
    """The result of a search.

    Attributes:
        found: Groups whose order is free.
        refused: The other products, with the reason.
    """

    found: tuple[SharedOrder, ...]
    refused: tuple[FixedOrder, ...]


def find_shared_orders(model: ir.Model) -> SharedOrders:
    """Finds the products whose output channels may be put into another order."""
    search = _Search(model)
    found: list[SharedOrder] = []
    refused: list[FixedOrder] = []
    for component in search.components():
        producers = search.producers(component)
        try:
            found.append(search.shared_order(component, producers))
        except _FixedError as error:
            refused.append(FixedOrder(producers, str(error)))
    return SharedOrders(tuple(found), tuple(refused))


class _FixedError(Exception):
    """Why the channels of a component have to stay in order; never leaves this module."""


class _Search:
    """Finds the components of one model.

    Attributes:
        graph: The main graph.
        order: Places of its nodes.
        made: By output of a product: the unit that it multiplies by.
        read: The same by node.
        joins: Nodes that carry channels from some of their inputs to their outputs.
        links: The values that nodes join; the components are those of this graph.
    """

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.order = {node: at for at, node in enumerate(model.graph)}
        self.read = {
            use.node: unit
            for unit in find_units(model)
            for use in unit.uses
            if use.kind == "product" and use.node.op_type in ("MatMul", "Gemm")
        }
        self.made = {node.outputs[0]: unit for node, unit in self.read.items()}
        self.joins: dict[ir.Node, list[int]] = {}
        self.links = nx.Graph()
        self.links.add_nodes_from(self.made)
        for node in self.graph:
            self._join(node)

    def _join(self, node: ir.Node) -> None:
        carrying = _carrying(node, node in self.read)
        carried = [at for at in carrying if _is_long(node.inputs[at])]
        if not carried:
            return
        self.joins[node] = carried
        values = [*(node.inputs[at] for at in carried), *node.outputs]
        self.links.add_edges_from((node.outputs[0], value) for value in values)

    def components(self) -> Iterable[list[ir.Value]]:
        """Yields every component with a product in it, values in execution order."""
        seen: set[ir.Value] = set()
        for value in sorted(self.made, key=self._place):
            if value not in seen:
                found = nx.node_connected_component(self.links, value)
                seen |= found
                yield sorted(found, key=self._place)

    def _place(self, value: ir.Value) -> tuple[int, str]:
        maker = value.producer()
        return (-1 if maker is None else self.order.get(maker, -1)), str(value.name)

    def producers(self, component: list[ir.Value]) -> tuple[Unit, ...]:
        """Returns the units whose output channels are in a component."""
        units = (self.made[value] for value in component if value in self.made)
        return tuple({unit.name: unit for unit in units}.values())

    def shared_order(
        self, component: list[ir.Value], producers: tuple[Unit, ...]
    ) -> SharedOrder:
        """Returns the group of a component; raises when its channels cannot move."""
        channels = producers[0].shape[0]
        for unit in producers:
            _check_producer(unit, channels)
        inside = set(component)
        constants = [value for value in component if self._enters(value, channels)]
        readers = {unit.name: unit for value in component for unit in self._readers(value)}
        consumers = sorted(readers.values(), key=lambda unit: self.order[unit.anchor])
        if not consumers:
            raise _FixedError("no product reads the result")
        for unit in consumers:
            _check_consumer(unit, inside)
        return SharedOrder(producers, tuple(consumers), tuple(constants))

    def _enters(self, value: ir.Value, channels: int) -> bool:
        """Checks where a value comes from; tells whether it is a constant to reorder."""
        node = value.producer()
        if value in self.made:
            return False
        if node is not None and node in self.joins:
            if node.op_type in _VIEWS and _last_dim(value) != channels:
                raise _FixedError(f"{_label(node)} may move the channels to another axis")
            return False
        if node is not None or value.const_value is None:
            source = _label(node) if node is not None else f"input {value.name!r}"
            raise _FixedError(f"{source} takes part, whose channels have their own order")
        _check_initializer(value)
        if _last_dim(value) != channels:
            raise _FixedError(f"the constant {value.name!r} has another number of channels")
        return True

    def _readers(self, value: ir.Value) -> list[Unit]:
        """Checks who reads a value; returns the units that it is multiplied by."""
        if value.is_graph_output():
            raise _FixedError(f"{value.name!r} is an output of the model")
        found = []
        for usage in value.uses():
            if usage.node.graph is not self.graph:
                raise _FixedError(f"{value.name!r} is read inside control flow")
            if usage.node in self.read and usage.idx == 0:
                found.append(self.read[usage.node])
            elif usage.idx not in self.joins.get(usage.node, ()):
                raise _FixedError(f"{_label(usage.node)} tells the channels apart")
        return found


def _carrying(node: ir.Node, is_product: bool) -> list[int]:
    """Returns the inputs of ``node`` whose channels are those of its output."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    present = [at for at, value in enumerate(node.inputs) if value is not None]
    if is_product:
        return [at for at in present if at == 2]  # what a Gemm adds
    if not domain and node.op_type in _VIEWS:
        return [0]
    if node.op_type not in _ELEMENTWISE.get(domain, ()) or _is_random(node):
        return []
    return present


def _is_random(node: ir.Node) -> bool:
    """Tells whether ``node`` is a Dropout that may be in training mode."""
    training = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    if training is None:
        return False
    tensor = stored_tensor(training)
    return tensor is None or bool(np.any(tensor.numpy()))


def _is_long(value: ir.Value | None) -> bool:
    """Tells whether a value may have more than one entry on its last axis."""
    if value is None:
        return False
    tensor = stored_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape
    return shape is None or (len(shape) > 0 and shape[-1] != 1)


def _last_dim(value: ir.Value) -> int | None:
    """Returns the length of a value's last axis, if the graph tells."""
    tensor = stored_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape
    if shape is not None and len(shape) and isinstance(shape[-1], int):
        return shape[-1]
    node = value.producer()
    if node is None or node.op_type != "Reshape":
        return None
    return _last_entry(node.inputs[1])


def _last_entry(shape: ir.Value | None) -> int | None:
    """Returns the last entry of a shape that a graph computes, if it is constant."""
    while shape is not None and (node := shape.producer()) is not None:
        if node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
            break
        shape = node.inputs[-1]
    tensor = stored_tensor(shape) if shape is not None else None
    return int(tensor.numpy().reshape(-1)[-1]) if tensor is not None and tensor.size else None


def _check_producer(unit: Unit, channels: int) -> None:
    if unit.reason:
        raise _FixedError(f"{unit.name!r} stays in float: {unit.reason}")
    if len(unit.uses) > 1:
        raise _FixedError(f"{unit.name!r} is used more than once")
    if unit.shape[0] != channels:
        raise _FixedError(f"{unit.name!r} has another number of channels")
    _check_initializer(unit.weight)


def _check_consumer(unit: Unit, inside: set[ir.Value]) -> None:
    if unit.reason:
        raise _FixedError(f"{unit.name!r} stays in float: {unit.reason}")
    uses = [use for use in unit.uses if use.kind == "product"]
    others = len(uses) < len(unit.uses) or any(use.activation not in inside for use in uses)
    if others:
        raise _FixedError(f"{unit.name!r} multiplies other activations too")
    _check_initializer(unit.weight)


def _check_initializer(value: ir.Value) -> None:
    """Refuses what cannot be reordered in place."""
    if value.producer() is not None or not value.is_initializer():
        raise _FixedError(f"{value.name!r} is not an initializer; normalize turns it into one")
    if value.is_graph_input() or value.is_graph_output():
        raise _FixedError(f"{value.name!r} can be seen from outside the model")


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"

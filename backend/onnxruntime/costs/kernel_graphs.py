"""Small graphs that do one operation several times, with weights that differ.

The weights of one graph must not be equal: the runtime would keep equal ones once, and they
would stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ....ir import Option
from ....ir.costs import CONCAT, FLOAT, INT8, ORDER, SELECT

_CONTRIB = "com.microsoft"
_OPSET = 18
_IR_VERSION = 9
_SELECTED = 32  # channels that `select` takes
_INPUT = "x"

Weights = dict[str, np.ndarray]
Attributes = dict[str, int]


@dataclass(frozen=True)
class KernelGraph:
    """A graph that does one operation several times.

    Attributes:
        model: The graph; inputs and outputs are float, tokens x channels.
        inputs: Names of its inputs with their channels.
        outputs: The same of its outputs.
        rows: Output channels of the operation.
        columns: Input channels.
        copies: How often it is done.
    """

    model: onnx.ModelProto
    inputs: dict[str, int]
    outputs: dict[str, int]
    rows: int
    columns: int
    copies: int


def product(operation: str, rows: int, columns: int, copies: int, level: int) -> KernelGraph:
    """Returns the graph of a product: ``float``, ``int8`` or an option's MatMulNBits.

    Args:
        operation: Which.
        rows: Output channels.
        columns: Input channels.
        copies: How often, each with weights of its own.
        level: The ``accuracy_level`` of MatMulNBits.
    """
    random = np.random.default_rng(0)
    if operation == FLOAT:
        weights: Weights = {"w": random.standard_normal((columns, rows), np.float32)}
        op_type, domain, attributes = "MatMul", "", Attributes()
    elif operation == INT8:
        weights = {
            "w": random.integers(-127, 128, (columns, rows), np.int8),
            "s": random.random(rows, np.float32),
        }
        op_type, domain, attributes = "DynamicQuantizeMatMul", _CONTRIB, Attributes()
    else:
        option = Option.parse(operation)
        groups = option.groups(columns)
        packed = (rows, groups, option.group * option.bits // 8)
        weights = {
            "c": random.integers(0, 256, packed, np.uint8),
            "s": random.random((rows, groups), np.float32),
        }
        op_type, domain = "MatMulNBits", _CONTRIB
        attributes = {
            "K": columns,
            "N": rows,
            "bits": option.bits,
            "block_size": option.group,
            "accuracy_level": level,
        }
    nodes, constants = [], []
    for at in range(copies):
        for name, array in weights.items():
            own = np.roll(array.reshape(-1), at + 1).reshape(array.shape)
            constants.append(numpy_helper.from_array(own, f"{name}{at}"))
        given = [_INPUT, *(f"{name}{at}" for name in weights)]
        node = helper.make_node(op_type, given, [f"y{at}"], domain=domain)
        node.attribute.extend(helper.make_attribute(*one) for one in attributes.items())
        nodes.append(node)
    inputs, outputs = {_INPUT: columns}, {f"y{at}": rows for at in range(copies)}
    model = _model(nodes, constants, inputs, outputs)
    return KernelGraph(model, inputs, outputs, rows, columns, copies)


@dataclass(frozen=True)
class _Part:
    """One copy of an operation: its nodes and constants, its inputs and outputs by width."""

    nodes: list[onnx.NodeProto]
    constants: list[TensorProto]
    inputs: dict[str, int]
    outputs: dict[str, int]


def joining(operation: str, channels: int, copies: int) -> KernelGraph:
    """Returns the graph of what puts row classes together, or takes an activation apart.

    Each copy has inputs of its own: of nodes that do the same the runtime keeps one.
    """
    make = {CONCAT: _concat, ORDER: _order, SELECT: _select}[operation]
    parts = [make(channels, at) for at in range(copies)]
    inputs = {name: width for part in parts for name, width in part.inputs.items()}
    outputs = {name: width for part in parts for name, width in part.outputs.items()}
    nodes = [node for part in parts for node in part.nodes]
    constants = [one for part in parts for one in part.constants]
    moved = _SELECTED if operation == SELECT else channels
    model = _model(nodes, constants, inputs, outputs)
    return KernelGraph(model, inputs, outputs, moved, moved, copies)


def _concat(channels: int, at: int) -> _Part:
    halves = {f"x{at}": channels // 2, f"w{at}": channels // 2}
    node = helper.make_node("Concat", list(halves), [f"y{at}"], axis=-1)
    return _Part([node], [], halves, {f"y{at}": channels})


def _order(channels: int, at: int) -> _Part:
    places = np.random.default_rng(at).permutation(channels).astype(np.int32)
    nodes = [
        helper.make_node("Transpose", [f"x{at}"], [f"a{at}"], perm=[1, 0]),
        helper.make_node("Gather", [f"a{at}", f"i{at}"], [f"b{at}"], axis=0),
        helper.make_node("Transpose", [f"b{at}"], [f"y{at}"], perm=[1, 0]),
    ]
    constants = [numpy_helper.from_array(places, f"i{at}")]
    return _Part(nodes, constants, {f"x{at}": channels}, {f"y{at}": channels})


def _select(channels: int, at: int) -> _Part:
    chosen = np.random.default_rng(at).choice(channels, _SELECTED, replace=False)
    places = numpy_helper.from_array(chosen.astype(np.int32), f"i{at}")
    node = helper.make_node("Gather", [f"x{at}", f"i{at}"], [f"y{at}"], axis=-1)
    return _Part([node], [places], {f"x{at}": channels}, {f"y{at}": _SELECTED})


def _model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[TensorProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "kernel", _values(inputs), _values(outputs), list(constants)
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _values(widths: dict[str, int]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", width])
        for name, width in widths.items()
    ]

"""CrossQuant as its paper has it, as graph nodes: for measurements, not for speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..engine.emission.emitter import Emitter, Names
from ..engine.numerics.activations import largest_code

_AXES_ARE_INPUTS = 18  # the opset from which ReduceMax takes its axes as an input


def emulate(
    graph: ir.Graph,
    activation: ir.Value,
    readers: Sequence[ir.Node],
    columns: int,
    alpha: float,
    bits: int,
    names: Names,
) -> None:
    """Lets ``readers`` see ``activation`` rounded, with a step for each token and column.

        step = max_j |x_ij|^alpha  max_i |x_ij|^(1 - alpha) / m
        y    = step * clip(round(x / step), -m, m),        m = 2^(bits - 1) - 1

    Args:
        graph: The main graph.
        activation: Any leading axes, then columns.
        readers: Products that multiply it.
        columns: Its number of columns.
        alpha: Share of the token in the step.
        bits: Width of the codes.
        names: Gives names to new values.
    """
    emit = _Rounding(graph, names, activation, readers[0])
    result = emit.rounded(activation, columns, alpha, largest_code(bits))
    order = {node: at for at, node in enumerate(graph)}
    graph.insert_before(min(readers, key=lambda node: order[node]), emit.nodes)
    for node in readers:
        node.replace_input_with(0, result)


class _Rounding(Emitter):
    """Emits the nodes that round one activation."""

    def __init__(
        self, graph: ir.Graph, names: Names, activation: ir.Value, like: ir.Node
    ) -> None:
        super().__init__(graph, names, f"{activation.name}/crossquant", like)
        self.dtype = activation.dtype or ir.DataType.FLOAT
        self.reduce_by_input = graph.opset_imports.get("", 1) >= _AXES_ARE_INPUTS

    def rounded(self, x: ir.Value, columns: int, alpha: float, most: int) -> ir.Value:
        """Emits everything; returns the rounded activation."""
        size = self.op("size", "Abs", [x])
        shape = self.constant("columns", np.array([-1, columns], np.int64))
        flat = self.op("flat", "Reshape", [size, shape])
        token = self.op("token", "Pow", [self.largest("token", size, -1), self.number(alpha)])
        column = self.largest("column", flat, 0)
        column = self.op("column", "Pow", [column, self.number(1 - alpha)])
        step = self.op("step", "Mul", [token, column])
        step = self.op("step", "Mul", [step, self.number(1 / most)])
        smallest = float(np.finfo(self.dtype.numpy()).tiny)
        step = self.op("step", "Max", [step, self.number(smallest)])
        code = self.op("code", "Round", [self.op("ratio", "Div", [x, step])])
        code = self.op("code", "Clip", [code, self.number(-most), self.number(most)])
        return self.op("rounded", "Mul", [code, step])

    def op(self, name: str, op_type: str, inputs: list[ir.Value]) -> ir.Value:
        """Emits a node of the activation's type."""
        return self.node(None, name, op_type, inputs, dtype=self.dtype)

    def number(self, value: float) -> ir.Value:
        """Returns a constant of the activation's type."""
        return self.constant("number", np.array(value, self.dtype.numpy()))

    def largest(self, name: str, value: ir.Value, axis: int) -> ir.Value:
        """Emits a ReduceMax along ``axis``; of tokens it keeps the axis."""
        inputs, attributes = [value], {"keepdims": int(axis == -1)}
        if self.reduce_by_input:
            inputs.append(self.constant("axis", np.array([axis], np.int64)))
            return self.node(
                None, f"{name}/largest", "ReduceMax", inputs, attributes, dtype=self.dtype
            )
        given: dict[str, int | list[int]] = {**attributes, "axes": [axis]}
        return self.node(None, f"{name}/largest", "ReduceMax", inputs, given, dtype=self.dtype)

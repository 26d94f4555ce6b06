"""The pass ``fold-affine``: scales and shifts of channels go into the convolution before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import FLOAT_TYPES
from .engine.emission.emitter import Names, store
from .engine.pipeline.base import Pass, PassContext, Promise

_CHANNELS = 1  # the axis of a convolution's result that counts output channels
_DOMAIN = ("", "ai.onnx")


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold what scales and shifts the channels of a convolution into its weight and bias.

        %a = Conv(%x, @w)                                %y = Conv(%x, @w', @b')
        %y = BatchNormalization(%a, @s, @b, @m, @v)  =>

    So are Mul, Div, Add and Sub with a constant for each channel, one after the other. A
    runtime does this itself for weights in floats, but not for codes; and a convolution
    multiplies integers only if its result is rounded right behind it.

    A weight or a result with other readers stays as it is.
    """

    name: ClassVar[str] = "fold-affine"
    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def run(self, model: ir.Model, context: PassContext) -> bool:
        names, folded = Names(model), []
        for node in list(model.graph):
            affine = _Affine.behind(node)
            if affine is not None and affine.nodes:
                affine.fold(model.graph, names)
                folded.append(str(node.name))
        context.report[self.name] = {"folded": folded}
        return bool(folded)


@dataclass
class _Affine:
    """``scale * y + shift`` for each channel ``y`` of a convolution without bias.

    Attributes:
        convolution: The node.
        weight: Its stored weight, which nothing else reads.
        scale: Float64, by output channel.
        shift: The same.
        nodes: The nodes behind it that compute this.
    """

    convolution: ir.Node
    weight: ir.Value
    scale: np.ndarray
    shift: np.ndarray
    nodes: list[ir.Node]

    @classmethod
    def behind(cls, node: ir.Node) -> _Affine | None:
        """Reads what follows a convolution; None if nothing can be folded into it."""
        if node.op_type != "Conv" or node.domain not in _DOMAIN:
            return None
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        stored = _constant(weight)
        if weight is None or stored is None or stored.ndim < 3 or not _is_own(weight):
            return None
        shift = np.zeros(len(stored)) if bias is None else _constant(bias)
        if shift is None:
            return None
        found = cls(node, weight, np.ones(len(stored)), shift.astype(np.float64), [])
        while found._takes_next(stored.ndim):
            pass
        return found

    @property
    def _end(self) -> ir.Value:
        return (self.nodes[-1] if self.nodes else self.convolution).outputs[0]

    def _takes_next(self, rank: int) -> bool:
        """Adds the one node that reads the result so far, if it is affine."""
        uses = list(self._end.uses())
        if self._end.is_graph_output() or len(uses) != 1:
            return False
        if uses[0].node.graph is not self.convolution.graph:  # a branch or a loop
            return False
        step = _step(uses[0].node, uses[0].idx, len(self.scale), rank)
        if step is None:
            return False
        scale, shift = step
        with np.errstate(all="ignore"):
            scale, shift = self.scale * scale, self.shift * scale + shift
            weight = self._scaled(scale)
            bias = shift.astype(weight.dtype)
        if not all(np.isfinite(one.astype(np.float32)).all() for one in (weight, bias)):
            return False
        self.scale, self.shift = scale, shift
        self.nodes.append(uses[0].node)
        return True

    def _scaled(self, scale: np.ndarray) -> np.ndarray:
        """Returns the weight times ``scale``, in its own type."""
        stored = _constant(self.weight)
        assert stored is not None, "read before"
        factors = scale.reshape(-1, *[1] * (stored.ndim - 1))
        return np.asarray((stored.astype(np.float64) * factors).astype(stored.dtype))

    def fold(self, graph: ir.Graph, names: Names) -> None:
        """Changes weight and bias, and removes the nodes."""
        scaled = self._scaled(self.scale)
        self.weight.const_value = ir.Tensor(scaled, name=self.weight.name)
        bias = store(
            graph, names.free(f"{self.weight.name}/bias"), self.shift.astype(scaled.dtype)
        )
        made, end = self.convolution.outputs[0], self._end
        bias_before = self.convolution.inputs[2] if len(self.convolution.inputs) > 2 else None
        self.convolution.resize_inputs(3)
        self.convolution.replace_input_with(2, bias)
        made.name, made.shape, made.type = (
            end.name,
            end.shape or made.shape,
            end.type or made.type,
        )
        if end.is_graph_output():
            graph.outputs[list(graph.outputs).index(end)] = made
        end.replace_all_uses_with(made)
        given = [value for one in self.nodes for value in one.inputs]
        graph.remove(list(reversed(self.nodes)), safe=True)
        for value in (*given, bias_before):
            if value is not None and value.is_initializer() and _is_unread(value):
                graph.initializers.pop(str(value.name), None)


def _is_own(weight: ir.Value) -> bool:
    """Tells whether a weight is stored for a single reader."""
    stored = weight.is_initializer() and not weight.is_graph_output()
    return stored and len(weight.uses()) == 1


def _is_unread(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()


def _step(
    node: ir.Node, index: int, channels: int, rank: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns scale and shift of a node that reads the result in one of its inputs."""
    if node.domain not in _DOMAIN:
        return None
    if node.op_type == "BatchNormalization":
        return _normalization(node, channels) if index == 0 else None
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    other = _by_channel(node.inputs[1 - index], channels, rank)
    if other is None:
        return None
    none, one = np.zeros(channels), np.ones(channels)
    if node.op_type == "Mul":
        return other, none
    if node.op_type == "Add":
        return one, other
    if node.op_type == "Sub":
        return (one, -other) if index == 0 else (-one, other)
    with np.errstate(all="ignore"):
        return (1 / other, none) if index == 0 else None


def _normalization(node: ir.Node, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns scale and shift of a BatchNormalization as it is when a model runs."""
    trains = node.attributes.get_int("training_mode", 0) != 0
    if trains or any(one.uses() or one.is_graph_output() for one in node.outputs[1:]):
        return None
    given = [_constant(value) for value in node.inputs[1:5]]
    if len(given) < 4 or any(one is None or one.shape != (channels,) for one in given):
        return None
    gain, bias, mean, variance = (np.asarray(one, dtype=np.float64) for one in given)
    with np.errstate(all="ignore"):
        scale = gain / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return scale, bias - mean * scale


def _by_channel(value: ir.Value | None, channels: int, rank: int) -> np.ndarray | None:
    """Returns a constant by channel; None if it differs along any other axis."""
    array = _constant(value)
    if array is None or array.ndim > rank:
        return None
    if array.size == 1:
        return np.full(channels, float(array.reshape(())))
    dims = [1] * (rank - array.ndim) + list(array.shape)
    if dims != [channels if at == _CHANNELS else 1 for at in range(rank)]:
        return None
    return array.astype(np.float64).reshape(channels)


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """Returns a constant in floats that no caller of the model can replace."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype not in FLOAT_TYPES:
        return None
    return np.asarray(tensor.numpy())

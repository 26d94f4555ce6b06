"""Units: one stored weight and the nodes that consume it; ``unit_search`` finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from .annotation import Annotated, UnitNotes
from .errors import InternalError

SMALLEST_UNIT = 256  # entries; of fewer, scales and shapes would take what codes save
FLOAT_TYPES = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)
VIEWS = {"Identity", "Transpose", "Cast"}

Kind = Literal["product", "lookup", "conv", "array"]


@dataclass(frozen=True)
class Use:
    """One node that reads the weight.

    Attributes:
        node: The consumer; for one inside control flow, the If, Loop or Scan around it.
        index: Which of its inputs carries the weight (possibly through views).
        kind: ``product`` for MatMul and Gemm, ``lookup`` for Gather, ``conv`` for Conv, and
            ``array`` for any other reader, which no kernel of codes can serve: it takes the
            whole weight as floats.
        row_axis: Axis of the *stored* tensor that counts output channels or table rows.
    """

    node: ir.Node
    index: int
    kind: Kind
    row_axis: int

    @property
    def takes_floats(self) -> bool:
        """Whether the reader stays as it is, and takes the whole weight expanded to floats."""
        return self.kind in ("conv", "array")

    @property
    def activation(self) -> ir.Value:
        """The input of the product, or the ids of the lookup; nothing else has one."""
        value = self.node.inputs[1 - self.index]
        assert value is not None
        return value

    @property
    def product_rank(self) -> int | None:
        """How many axes a product's activation has, and so its result; None if unknown."""
        shapes = (self.activation.shape, self.node.outputs[0].shape)
        return next((len(shape) for shape in shapes if shape is not None), None)


@dataclass(frozen=True)
class Unit:
    """One stored weight and its consumers.

    Attributes:
        weight: The initializer, or the output of a Constant node.
        uses: Its consumers, in execution order. Either all of them are ``array`` or none is.
        views: Transpose, Identity and Cast nodes between the initializer and its consumers.
        reason: Why the unit has to stay in float; empty when it can be quantized.
        refused: Nodes of the main graph that need it as it is, in execution order.
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
        """The first consumer of the unit."""
        return self.uses[0].node if self.uses else self.refused[0]

    @property
    def notes(self) -> Annotated:
        """Where the unit's notes are: on its anchor.

        A node multiplies by one weight that it has a kernel for, but may read several arrays.
        """
        if self.uses and self.uses[0].kind != "array":
            return self.anchor
        return UnitNotes(self.anchor, self.name)

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

    def put_back(self, tensor: ir.TensorProtocol) -> None:
        """Stores what ``tensor`` was before it was replaced."""
        _store(self.weight, tensor)

    def replace_lazily(self, matrix: Callable[[], np.ndarray]) -> None:
        """Stores what ``matrix`` returns (rows x columns), which is asked whenever it is read.

        What it returns must not change.
        """
        dtype, shape = self.tensor.dtype, ir.Shape(self.tensor.shape.numpy())
        dims, axis, name = shape.numpy(), self.row_axis, self.weight.name

        def made() -> ir.Tensor[np.ndarray]:
            array = _laid_out(matrix().astype(dtype.numpy(), copy=False), dims, axis)
            return ir.Tensor(array, dtype, name=name)

        _store(self.weight, ir.LazyTensor(made, dtype=dtype, shape=shape, name=name))

    def stored_layout(self, matrix: np.ndarray) -> np.ndarray:
        """Returns ``matrix`` (rows x columns) in the shape and the order of the weight."""
        return _laid_out(matrix, self.tensor.shape.numpy(), self.row_axis)


def stored_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Returns the tensor of an initializer or of the output of a Constant node, or None."""
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return value.const_value
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref():
        return None
    return attribute.as_tensor()


def _laid_out(matrix: np.ndarray, dims: Sequence[int], axis: int) -> np.ndarray:
    """Returns rows x columns in the shape ``dims``, in which ``axis`` counts the rows."""
    moved = [dims[axis], *dims[:axis], *dims[axis + 1 :]]
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


def _store(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    node = value.producer()
    value.const_value = tensor
    if node is not None:
        node.attributes["value"] = ir.AttrTensor("value", tensor)

"""Which input of an op is a weight, what belongs to it, and how its shape reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from ..annotation import note_of
from ..units import FLOAT_TYPES, SMALLEST_UNIT
from ..vocabulary import StoredPart
from .static_values import StaticValues

_FORWARD = {
    *("BitShift", "BitwiseAnd", "Cast", "Div", "Floor", "Mod"),
    *("Reshape", "Slice", "Sub", "Unsqueeze"),
}
_BACKWARD = {"Reshape", "Cast", "Unsqueeze"}
_PACKED = {"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"}


@dataclass(frozen=True)
class Slot:
    """An input that is a weight when it depends on constants only.

    Attributes:
        weight: Index of the input.
        kind: ``product``, ``conv``, ``lookup`` or ``array``.
        axis: Axis of the weight that counts rows.
        satellites: Inputs that belong to it: scales, zero points.
        quantized: Whether the op reads nothing but codes.
    """

    weight: int
    kind: str
    axis: int
    satellites: tuple[int, ...] = ()
    quantized: bool = False

    def satellites_of(self, node: ir.Node) -> Iterator[ir.Value]:
        """Yields scales, zero points and the like."""
        for index in self.satellites:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None:
                yield value


def _codes(weight: int, kind: str, axis: int, *satellites: int) -> tuple[Slot, ...]:
    return (Slot(weight, kind, axis, satellites, quantized=True),)


SLOTS: dict[str, tuple[Slot, ...]] = {
    "MatMul": (Slot(1, "product", -1), Slot(0, "product", -2)),
    "FusedMatMul": (Slot(1, "product", -1), Slot(0, "product", -2)),
    "Gemm": (Slot(1, "product", -1), Slot(0, "product", -2)),
    "Conv": (Slot(1, "conv", 0),),
    "ConvTranspose": (Slot(1, "conv", 1),),
    "Einsum": tuple(Slot(at, "array", 0) for at in range(4)),
    "LSTM": (Slot(1, "array", 1), Slot(2, "array", 1)),
    "Attention": (Slot(1, "product", -1),),
    "EmbedLayerNormalization": tuple(Slot(at, "lookup", 0) for at in (2, 3, 4)),
    "FusedConv": (Slot(1, "conv", 0),),
    "FusedGemm": (Slot(1, "product", -1), Slot(0, "product", -2)),
    "MoE": tuple(Slot(at, "array", 1) for at in (2, 4, 6)),
    "TransposeMatMul": (Slot(1, "product", -1), Slot(0, "product", -2)),
    "GRU": (Slot(1, "array", 1), Slot(2, "array", 1)),
    "RNN": (Slot(1, "array", 1), Slot(2, "array", 1)),
    "Gather": (Slot(0, "lookup", 0),),
    "GatherND": (Slot(0, "array", 0),),
    "MatMulNBits": _codes(1, "product", 0, 2, 3, 4),
    "MatMulBnb4": _codes(1, "product", 0, 2),
    "GatherBlockQuantized": _codes(0, "lookup", 0, 2, 3),
    "QLinearMatMul": _codes(3, "product", -1, 4, 5),
    "QGemm": _codes(3, "product", -1, 4, 5),
    "MatMulInteger": _codes(1, "product", -1, 3),
    "MatMulIntegerToFloat": _codes(1, "product", -1, 3, 5),
    "DynamicQuantizeMatMul": _codes(1, "product", -1, 2, 3),
    "QAttention": _codes(1, "product", -1, 4, 7),
    "DynamicQuantizeLSTM": _codes(1, "array", -1, 8, 9) + _codes(2, "array", -1, 10, 11),
    "QLinearConv": _codes(3, "conv", 0, 4, 5),
    "ConvInteger": _codes(1, "conv", 0, 3),
}


def slots_of(node: ir.Node) -> tuple[Slot, ...]:
    """Returns the inputs of ``node`` that may be weights."""
    known = node.domain in ("", "ai.onnx", "com.microsoft")
    return SLOTS.get(node.op_type, ()) if known else ()


@dataclass(frozen=True)
class Part:
    """Rows of a weight, or columns of all its rows, that share a width.

    Attributes:
        rows: Number of rows.
        columns: Weights in a row, without padding.
        bits: Bits of a code, or of a float.
        of_columns: Whether other parts have other columns of the same rows.
    """

    rows: int
    columns: int
    bits: float
    of_columns: bool = False


def codes_of(node: ir.Node, slot: Slot, static: StaticValues) -> list[ir.Value]:
    """Returns the constants with the codes in ``slot`` of ``node``; none if it has no codes.

    Bytes that several codes share are codes at any size: they may be a few rows of a weight.
    """
    value = node.inputs[slot.weight] if slot.weight < len(node.inputs) else None
    tensors = {one: static.constants[one] for one in static.carriers(value)}
    tables = {one: t for one, t in tensors.items() if len(t.shape) >= 2}
    if (
        value is None
        or not tables
        or max(tables.values(), key=lambda t: t.size).dtype in FLOAT_TYPES
    ):
        return []
    codes = {one: t for one, t in tables.items() if t.dtype not in FLOAT_TYPES}
    packed = (
        node.op_type in _PACKED
        or (node.op_type == "Gather" and _is_packed(value, tables, static))
        or sum(tensor.size for tensor in codes.values()) < prod(static.dims(value) or ())
    )
    note = note_of(node, StoredPart)
    is_noted = note is not None and note.role != "expansion"  # whose tables are no codes
    smallest = 1 if packed or is_noted else SMALLEST_UNIT
    return list(codes) if sum(tensor.size for tensor in codes.values()) >= smallest else []


def _is_packed(
    value: ir.Value, tables: dict[ir.Value, ir.TensorProtocol], static: StaticValues
) -> bool:
    bytes_only = all(t.dtype == ir.DataType.UINT8 for t in tables.values())
    return bytes_only and len(static.dims(value) or ()) == 3


def part_of(node: ir.Node, slot: Slot, static: StaticValues, codes: list[ir.Value]) -> Part:
    """Returns the parts of the weight in ``slot`` of ``node``."""
    if node.op_type in ("MatMulNBits", "MatMulBnb4"):
        return _packed_product(node, static, codes)
    value = node.inputs[slot.weight]
    assert value is not None
    stored, dtype = static.dims(codes[0]), static.constants[codes[0]].dtype
    dims = static.dims(value) or stored or ()
    if static.dtype(value) in FLOAT_TYPES and (dtype == ir.DataType.UINT8 or len(codes) > 1):
        rows = _rows(dims, _row_axis(node, slot))  # made of packed indices
        return Part(
            rows, prod(dims) // rows, _stored_width(value, codes, static, 8, prod(dims))
        )
    if node.op_type in ("Gather", "GatherBlockQuantized") and dtype == ir.DataType.UINT8:
        given = node.attributes.get_int("bits", 4), 0
        bits, cut = _unpacked_width(node) if node.op_type == "Gather" else given
        columns = prod(dims[1:]) * 8 // bits
        width = _stored_width(value, codes, static, bits, dims[0] * columns)
        return Part(dims[0], cut or columns, width)
    rows, size = _rows(dims, _row_axis(node, slot)), prod(dims)
    if node.op_type != "MatMulInteger":
        return Part(rows, size // rows, dtype.bitwidth)
    width = _stored_width(value, codes, static, dtype.bitwidth, max(size, 1))
    return Part(rows, size // rows, width)


def _packed_product(node: ir.Node, static: StaticValues, codes: list[ir.Value]) -> Part:
    rows, columns = node.attributes.get_int("N"), node.attributes.get_int("K")
    block = node.attributes.get_int("block_size")
    bits, value = node.attributes.get_int("bits", 4), node.inputs[1]
    if value is None or node.op_type == "MatMulBnb4":
        return Part(rows, columns, bits)
    padded = rows * -(-columns // block) * block
    if codes == [value]:  # attributes must not claim more than the file has codes for
        columns = min(columns, 8 * static.size(value) // max(rows * bits, 1))
    width = _stored_width(value, codes, static, bits, padded)
    note = note_of(node, StoredPart)
    return Part(rows, columns, width, note is not None and note.role == "channels")


def _stored_width(
    value: ir.Value, codes: list[ir.Value], static: StaticValues, bits: int, places: int
) -> float:
    """Returns the width of a code in the file: less than in memory where codes expand at load.

    Args:
        value: The input of the kernel.
        codes: The constants that it carries.
        static: All of them.
        bits: Width of a code for the kernel.
        places: Codes in ``value``, with padding.
    """
    if codes == [value]:
        return bits
    return round(8 * sum(static.size(one) for one in codes) / max(places, 1), 2)


def _rows(dims: Sequence[int], axis: int) -> int:
    return max(dims[axis], 1) if -len(dims) <= axis < len(dims) else 1


def _row_axis(node: ir.Node, slot: Slot) -> int:
    transposed = {0: "transA", 1: "transB", 3: "transB"}.get(slot.weight, "")
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0)
    if slot.kind == "product" and bool(node.attributes.get_int(transposed, 0)):
        return -1 if slot.axis == -2 else -2
    return slot.axis


def _users(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.outputs:
        yield from value.consumers()


def _downstream(node: ir.Node) -> Iterator[ir.Node]:
    """Yields the single-consumer chain after ``node`` that expands looked-up codes."""
    while True:
        users = list(_users(node))
        if len(users) != 1 or users[0].domain not in ("", "ai.onnx"):
            return
        node = users[0]
        yield node
        if node.op_type not in _FORWARD and node.op_type != "Mul":
            return


def _constant_number(value: ir.Value | None) -> int | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1:
        return None
    number = float(tensor.numpy().ravel()[0])
    return int(number) if number.is_integer() else None


def _unpacked_width(gather: ir.Node) -> tuple[int, int]:
    """Returns the width of the codes that are looked up in bytes, and the columns if cut.

    Bytes are divided, then Mod takes the lowest field. Older results shift fields up, and then
    down by the remaining bits of the byte.
    """
    bits, columns = 8, 0
    for node in _downstream(gather):
        if node.op_type == "BitShift" and node.attributes.get_string("direction") == "RIGHT":
            bits = max(1, 8 - (_constant_number(node.inputs[1]) or 0))
        if node.op_type == "Mod":
            bits = max(1, ((_constant_number(node.inputs[1]) or 256) - 1).bit_length())
        if node.op_type == "Slice":
            columns = _constant_number(node.inputs[2]) or 0 if len(node.inputs) > 2 else 0
    return bits, columns


def distant_scales(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the scales of ``node``'s codes that other nodes apply to its result.

    For looked-up codes they are looked up too; for MatMulInteger they may have been multiplied
    with the scale of the activations.
    """
    if node.op_type not in ("Gather", "MatMulInteger", "ConvInteger"):
        return
    source = node
    for user in _downstream(node):
        if user.op_type in ("Mul", "DequantizeLinear"):
            others = [v for v in user.inputs if v is not None and v.producer() is not source]
            for value in others:
                yield from _tables_behind(value)
            return
        source = user


def _tables_behind(value: ir.Value) -> Iterator[ir.Value]:
    """Yields the table that ``value`` was looked up in, or the factors of it, or itself."""
    start = value
    while (node := value.producer()) is not None and node.inputs:
        source = node.inputs[0]
        if source is None or node.op_type == "Gather":
            yield from () if source is None else (source,)
            return
        if node.op_type == "Mul":
            yield from (one for one in node.inputs if one is not None)
            return
        if node.op_type not in _BACKWARD:
            break
        value = source
    yield start

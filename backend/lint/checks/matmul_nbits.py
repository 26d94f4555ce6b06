"""MatMulNBits and GatherBlockQuantized in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from ....ir import FLOAT_TYPES
from ..view import Broken, Check, View, given, whole

_WIDTHS = (2, 4, 8)
_LEAST_BLOCK, _MOST_BLOCK = 16, 256
_INT8_ACTIVATIONS = 4
_FAST_2_BITS = (32, 64, 128)
_CUDA_BLOCKS = {2: 64, 4: 32, 8: 32}
_CUDA_MULTIPLE = 8
_ZERO_POINTS, _ORDER, _BIAS = 3, 4, 5


def _products(view: View) -> Iterator[tuple[ir.Node, int, int]]:
    """Yields each MatMulNBits with its width and its block."""
    for node in view.contrib("MatMulNBits"):
        yield (
            node,
            whole(node, "bits", 4),
            whole(node, "block_size", 0),
        )


def _width(view: View) -> Broken:
    for node, bits, _ in _products(view):
        if bits not in _WIDTHS:
            yield node, f"{bits} bits"


def _block(view: View) -> Broken:
    for node, _, size in _products(view):
        if size < _LEAST_BLOCK or size & (size - 1):
            yield node, f"blocks of {size}"


def _large_block(view: View) -> Broken:
    for node, _, size in _products(view):
        if size > _MOST_BLOCK:
            yield node, f"blocks of {size}"


def _packed_shape(view: View) -> Broken:
    for node, bits, size in _products(view):
        dims = view.dims(given(node, 1))
        rows, columns = whole(node, "N", 0), whole(node, "K", 0)
        if dims is None or not size:
            continue
        blocks = -(-columns // size)
        if dims != (rows, blocks, size * bits // 8):
            wanted = [rows, blocks, size * bits // 8]
            yield node, f"codes of {list(dims)}, its attributes say {wanted}"


def _cpu_level(view: View) -> Broken:
    for node, bits, _ in _products(view):
        level = whole(node, "accuracy_level", 0)
        if bits != 4 and level != _INT8_ACTIVATIONS:
            yield node, f"{bits} bits at accuracy_level {level}"


def _cpu_block(view: View) -> Broken:
    for node, bits, size in _products(view):
        if bits == 2 and size not in _FAST_2_BITS:
            yield node, f"2 bits in blocks of {size}"


def _eight_bits(view: View) -> Broken:
    found = [node for node, bits, _ in _products(view) if bits == 8]
    if found:
        yield found[0], f"{len(found)} products of 8 bits"


def _float_zero_point(view: View) -> Broken:
    for node, _, _ in _products(view):
        value = given(node, _ZERO_POINTS)
        if value is not None and view.dtype(value) in FLOAT_TYPES:
            yield node, f"zero points of {view.dtype(value)}"


def _column_order(view: View) -> Broken:
    for node, _, _ in _products(view):
        if given(node, _ORDER) is not None:
            yield node, f"its columns are sorted by {node.inputs[_ORDER]!r}".split("<")[0]


def _cuda_two_bits(view: View) -> Broken:
    for node, bits, _ in _products(view):
        if bits == 2:
            yield node, "2 bits"


def _cuda_multiples(view: View) -> Broken:
    for node, _, _ in _products(view):
        sizes = {name: whole(node, name, 0) for name in ("N", "K")}
        odd = [f"{name} = {size}" for name, size in sizes.items() if size % _CUDA_MULTIPLE]
        if odd:
            yield node, ", ".join(odd)


def _cuda_bias(view: View) -> Broken:
    for node, _, _ in _products(view):
        if given(node, _BIAS) is not None:
            yield node, "it adds a bias"


def _cuda_floats(view: View) -> Broken:
    for node, _, _ in _products(view):
        if view.dtype(given(node, 2)) == ir.DataType.FLOAT:
            yield node, "activations of float32"


def _cuda_block(view: View) -> Broken:
    for node, bits, size in _products(view):
        if bits in _CUDA_BLOCKS and size != _CUDA_BLOCKS[bits]:
            yield node, f"{bits} bits in blocks of {size}, {_CUDA_BLOCKS[bits]} are quick"


def _lookup_block(view: View) -> Broken:
    for node in view.contrib("GatherBlockQuantized"):
        size = whole(node, "block_size", 128)
        if size < _LEAST_BLOCK or size & (size - 1):
            yield node, f"blocks of {size}"


def _lookup_zero_point(view: View) -> Broken:
    for node in view.contrib("GatherBlockQuantized"):
        if given(node, 3) is None:
            yield node, "it has no zero points"


CHECKS: Mapping[str, Check] = {
    "nbits-width": _width,
    "nbits-block": _block,
    "nbits-large-block": _large_block,
    "nbits-packed-shape": _packed_shape,
    "nbits-cpu-level": _cpu_level,
    "nbits-cpu-block": _cpu_block,
    "nbits-8-bits-without-vnni": _eight_bits,
    "nbits-float-zero-point": _float_zero_point,
    "nbits-column-order": _column_order,
    "nbits-cuda-2-bits": _cuda_two_bits,
    "nbits-cuda-multiples": _cuda_multiples,
    "nbits-cuda-bias": _cuda_bias,
    "nbits-cuda-floats": _cuda_floats,
    "nbits-cuda-block": _cuda_block,
    "lookup-block": _lookup_block,
    "lookup-zero-point": _lookup_zero_point,
}

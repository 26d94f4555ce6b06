"""What a browser takes: onnxruntime-web, on WebGPU or in WebAssembly."""

from __future__ import annotations

from collections.abc import Mapping

from ..view import Broken, Check, View, whole

_MOST_BYTES = (1 << 31) - 1  # of an ArrayBuffer in common browsers
_GPU_COLUMNS, _GPU_ROWS, _GPU_BLOCK = 128, 16, 32


def _too_large(view: View) -> Broken:
    if view.size > _MOST_BYTES:
        yield None, f"{view.size / 1e9:.1f} GB"


def _slow_product(view: View) -> Broken:
    for node in view.contrib("MatMulNBits"):
        wanted = {"K": _GPU_COLUMNS, "N": _GPU_ROWS, "block_size": _GPU_BLOCK}
        sizes = {name: whole(node, name, 0) for name in wanted}
        odd = [f"{name} = {size}" for name, size in sizes.items() if size % wanted[name]]
        if odd:
            yield node, ", ".join(odd)


def _rounding_on_cpu(view: View) -> Broken:
    for node in view.standard("QuantizeLinear"):
        if node.inputs[0] not in view.static:
            yield node, "it rounds an activation"


CHECKS: Mapping[str, Check] = {
    "web-too-large": _too_large,
    "web-slow-product": _slow_product,
    "web-rounding-on-cpu": _rounding_on_cpu,
}

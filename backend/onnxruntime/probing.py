"""Tries every entry of a capability table on this machine: is it right, and is it fast?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir import Capabilities, Kernel
from .runner import RuntimeSession, open_session

_SIZE = 1024  # rows and columns: large enough for the kernel to matter more than the call
_SECONDS = 0.05
_LARGEST_ERROR = 0.02  # of a product whose activations are rounded to int8


@dataclass(frozen=True)
class Probe:
    """The result of one kernel.

    Attributes:
        bits: Width of a code.
        group: Columns that share a scale.
        error: Relative error of the product of one token.
        time: Time of one token relative to the float32 product.
    """

    bits: int
    group: int
    error: float
    time: float

    @property
    def problem(self) -> str:
        """The kernel's problem; empty if it is right and faster than float32."""
        if not self.error <= _LARGEST_ERROR:
            return f"{self.bits}g{self.group} computes with an error of {self.error:.1%}"
        if self.time > 1:
            return f"{self.bits}g{self.group} takes {self.time:.1f} times float32's time"
        return ""


def probe(table: Capabilities) -> tuple[Probe, ...]:
    """Returns how every kernel of ``table`` does on this machine, on one thread.

    Raises:
        MachineError: The target cannot run here at all.
    """
    token = np.random.default_rng(0).standard_normal((1, _SIZE)).astype(np.float32)
    plain = np.random.default_rng(1).standard_normal((_SIZE, _SIZE)).astype(np.float32)
    with open_session(_product("MatMul", [plain]), table.provider, threads=1) as it:
        base = _seconds(it, token)
    return tuple(
        _probe(kernel, group, table.provider, token, base)
        for kernel in table.kernels
        for group in kernel.groups
    )


def _probe(kernel: Kernel, group: int, provider: str, token: np.ndarray, base: float) -> Probe:
    rng = np.random.default_rng(kernel.bits * group)
    packed = rng.integers(0, 256, (_SIZE, _SIZE // group, group * kernel.bits // 8), np.uint8)
    scales = rng.standard_normal((_SIZE, _SIZE // group)).astype(np.float32)
    expected = token @ _unpacked(packed, scales, kernel.bits).T
    attributes = {
        "K": _SIZE,
        "N": _SIZE,
        "bits": kernel.bits,
        "block_size": group,
        "accuracy_level": kernel.accuracy_level,
    }
    model = _product("MatMulNBits", [packed, scales], attributes, "com.microsoft")
    with open_session(model, provider, threads=1) as session:
        result = session.run({"A": token})["Y"]
        error = float(np.linalg.norm(result - expected) / np.linalg.norm(expected))
        return Probe(kernel.bits, group, error, _seconds(session, token) / base)


def _product(
    op_type: str,
    weights: Sequence[np.ndarray],
    attributes: Mapping[str, int] | None = None,
    domain: str = "",
) -> ir.Model:
    """Returns a model of one node that maps ``A`` to ``Y``."""
    given, result = (
        ir.Value(
            name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["m", _SIZE])
        )
        for name in "AY"
    )
    stored = [
        ir.Value(name=f"W{at}", const_value=ir.tensor(w)) for at, w in enumerate(weights)
    ]
    node = ir.node(
        op_type, [given, *stored], attributes or {}, domain=domain, outputs=[result]
    )
    graph = ir.Graph(
        [given],
        [result],
        nodes=[node],
        initializers=stored,
        opset_imports={"": 17, "com.microsoft": 1},
        name="product",
    )
    return ir.Model(graph, ir_version=8)


def _unpacked(packed: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    codes = fields.reshape(*scales.shape, -1).astype(np.float32) - (1 << (bits - 1))
    values: np.ndarray = (codes * scales[..., None]).reshape(len(packed), -1)
    return values


def _seconds(session: RuntimeSession, token: np.ndarray) -> float:
    """Returns the shortest time of one run: other work on the machine only adds."""
    return min(_timed(lambda: session.run({"A": token})))


def _timed(run: Callable[[], object]) -> Iterator[float]:
    end = time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        run()
        yield time.perf_counter() - start

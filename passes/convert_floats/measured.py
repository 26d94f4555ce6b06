"""What float16 would do to each node of a graph, seen on samples.

A node is computed as it is, and once more with everything that it reads and makes rounded to
float16. That tells an angle of 1000 radians, whose cosine rounding would spoil, from one of 1,
the difference of two numbers that are nearly equal from any other, and numbers that are too
small for float16 from those that are not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Feeds, StoredPart, note_of
from ...ir.units import stored_tensor
from .interpreter import Call, Interpreter, Tensors, results
from .rounding import LARGEST, MASKED, as_half
from .typing_rules import is_float32


@dataclass
class Seen:
    """What samples showed.

    Attributes:
        largest: By value: the largest magnitude, of numbers that rule nothing out.
        errors: By node: the error of its results in float16, relative to their root mean
            square; of results that are no floats, the share that changes.
    """

    largest: dict[ir.Value, float] = field(default_factory=dict)
    errors: dict[ir.Node, float] = field(default_factory=dict)

    def overflows(self, value: ir.Value, margin: float) -> bool:
        """Tells whether numbers ``margin`` times as large would leave float16's range."""
        return self.largest.get(value, 0.0) * margin > LARGEST

    def look(self, call: Call) -> Tensors | None:
        """Computes a node as it is, and notes what float16 would do to it."""
        made = call.compute(call.tensors)
        if made is None:
            return None
        values = (*call.values, *results(call.node))
        for value, tensor in zip(values, (*call.tensors, *made), strict=True):
            self._note(value, tensor)
        if not _is_exempt(call.node) and any(map(is_float32, values)):
            halves = [
                rounded(tensor) if is_float32(value) else tensor
                for value, tensor in zip(call.values, call.tensors, strict=True)
            ]
            found = call.compute(halves) or ()
            error = max((_change(*pair) for pair in zip(made, found, strict=False)), default=0)
            self.errors[call.node] = max(self.errors.get(call.node, 0.0), error)
        return made

    def _note(self, value: ir.Value, tensor: torch.Tensor) -> None:
        if is_float32(value) and tensor.numel():
            sizes = tensor.abs()
            largest = float(sizes.where(sizes < MASKED, 0.0).max())
            self.largest[value] = max(self.largest.get(value, 0.0), largest)


def without_numbers(
    interpreter: Interpreter, low: Collection[ir.Node], feeds: Feeds
) -> list[ir.Node]:
    """Returns the nodes of ``low`` that make infinities or no numbers of finite ones.

    All of the graph is run as it would be converted, so this finds what no single node shows:
    masks that are computed, or come from outside, and leave the range.

    Args:
        interpreter: Runs the graph as it is before the conversion.
        low: Nodes that are to compute in float16.
        feeds: A sample.
    """
    broken = []

    def convert(call: Call) -> Tensors | None:
        if call.node not in low:
            return call.compute(call.tensors)
        halves = [
            _converted(value, tensor)
            for value, tensor in zip(call.values, call.tensors, strict=True)
        ]
        made = call.compute(halves)
        if made is None:
            return None
        pairs = zip(results(call.node), made, strict=True)
        found = tuple(_converted(value, tensor) for value, tensor in pairs)
        if _has_lost_numbers(call.tensors, halves) or _has_lost_numbers(made, found):
            broken.append(call.node)
            return call.compute(call.tensors)
        if not all(map(_is_finite, found)) and all(map(_is_finite, call.tensors)):
            broken.append(call.node)
        return found

    interpreter.run(feeds, convert)
    return broken


def _converted(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
    """Returns numbers as a Cast would make them, or a conversion of constants."""
    if not is_float32(value):
        return tensor
    return tensor.half().float() if stored_tensor(value) is None else rounded(tensor)


def _has_lost_numbers(
    before: Collection[torch.Tensor], after: Collection[torch.Tensor]
) -> bool:
    """Tells whether some numbers are no longer finite."""
    return any(
        bool((one.isfinite() & ~other.isfinite()).any())
        for one, other in zip(before, after, strict=True)
        if one.dtype == torch.float32
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    return tensor.dtype != torch.float32 or bool(tensor.isfinite().all())


def _is_exempt(node: ir.Node) -> bool:
    """Tells whether a node rounds anyway, or only makes weights of codes."""
    note = note_of(node, StoredPart)
    stored = note is not None and note.role in ("dequantize", "expansion")
    return stored or node.op_type in ("QuantizeLinear", "DequantizeLinear")


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Returns float32 numbers as float16 holds them."""
    return torch.from_numpy(as_half(tensor.numpy()).astype(np.float32))


def _change(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Returns the error of float16 results, rounded as they would be."""
    if wanted.shape != found.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    if not wanted.is_floating_point():
        return float((wanted != found).float().mean())
    if wanted.dtype != torch.float32:
        return 0.0
    real = wanted.isfinite() & (wanted.abs() < MASKED)
    size = wanted.where(real, 0.0).square().mean().sqrt()
    error = (rounded(found) - wanted).where(real, 0.0)
    worst = error.nan_to_num(nan=float("inf")).square().mean().sqrt()
    return float(worst / size) if size > 0 else 0.0

"""What float16 would do to each node of a graph, seen on samples.

A node is run in torch on the numbers that it really read, and once more on the same numbers
rounded to float16. That tells an angle of 1000 radians, whose cosine rounding would spoil,
from one of 1, and the difference of two numbers that are nearly equal from any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from ...ir.units import stored_tensor
from ..engine.execution.exposing import exposing
from ..engine.execution.samples import Samples
from ..engine.pipeline.base import PassContext, Session
from .rounding import LARGEST, MASKED, as_half
from .typing_rules import is_float32

_BYTES_AT_ONCE = 1 << 28
_EXACT = {  # move numbers, or make sums of products, which rounding treats like any other
    *("Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
    *("Identity", "Pad", "Reshape", "ScatterElements", "ScatterND", "Slice", "Split"),
    *("Squeeze", "Tile", "Transpose", "Unsqueeze", "Where", "Relu", "MaxPool", "Shape"),
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "Mul", "Neg"),
    *("DequantizeLinear", "QuantizeLinear", "Constant", "ConstantOfShape"),
}


@dataclass
class Seen:
    """What samples showed.

    Attributes:
        largest: By value: the largest magnitude, of numbers that rule nothing out.
        errors: By node: the error of its results, relative to their root mean square, when
            what it reads is rounded; of results that are no floats, the share that changes.
    """

    largest: dict[ir.Value, float] = field(default_factory=dict)
    errors: dict[ir.Node, float] = field(default_factory=dict)

    def overflows(self, value: ir.Value, margin: float) -> bool:
        """Tells whether numbers ``margin`` times as large would leave float16's range."""
        return self.largest.get(value, 0.0) * margin > LARGEST


def watch(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    context: PassContext,
    samples: Samples,
) -> Seen:
    """Runs samples in the target runtime and looks at every number that nodes read and make.

    Args:
        model: The graph.
        nodes: Nodes of its main graph.
        context: Runs the graph, and single nodes in torch.
        samples: The samples.
    """
    seen, fed = Seen(), {str(value.name) for value in model.graph.inputs}
    wanted = [value for node in nodes for value in _computed(node)]
    with context.runner.session(exposing(model, list(dict.fromkeys(wanted)))) as session:
        for sample in context.progress.track(samples, len(samples), "ranges of floats"):
            for wave in _waves(nodes, sample.arrays):
                _look(wave, session, sample.arrays, fed, context, seen)
    return seen


def _computed(node: ir.Node) -> list[ir.Value]:
    """Returns what a run has to give for a node: all that it reads and makes but constants."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return [
        value
        for value in values
        if stored_tensor(value) is None and not value.is_graph_input() and value.dtype
    ]


def _waves(
    nodes: Sequence[ir.Node], feeds: Mapping[str, np.ndarray]
) -> Iterator[list[ir.Node]]:
    """Yields nodes whose values fit into memory together."""
    positions = max((int(np.prod(array.shape[:2])) for array in feeds.values()), default=1)
    wave: list[ir.Node] = []
    total = 0
    for node in nodes:
        size = sum(4 * _entries(value, positions) for value in _computed(node))
        if wave and total + size > _BYTES_AT_ONCE:
            yield wave
            wave, total = [], 0
        wave.append(node)
        total += size
    if wave:
        yield wave


def _entries(value: ir.Value, positions: int) -> int:
    """Guesses how many numbers a value holds for one sample: open dimensions are positions."""
    dims = list(value.shape) if value.shape is not None else []
    known = int(np.prod([one for one in dims if isinstance(one, int)], dtype=np.int64))
    opened = sum(not isinstance(one, int) for one in dims)
    return int(max(known, 1) * positions ** min(max(opened - 1, 1), 2))


def _look(
    nodes: Sequence[ir.Node],
    session: Session,
    feeds: Mapping[str, np.ndarray],
    fed: set[str],
    context: PassContext,
    seen: Seen,
) -> None:
    names = list(dict.fromkeys(str(value.name) for node in nodes for value in _computed(node)))
    arrays = {**session.run(feeds, names), **{key: feeds[key] for key in fed if key in feeds}}
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None and is_float32(value):
                array = _array(value, arrays)
                if array is not None:
                    found = seen.largest.get(value, 0.0)
                    seen.largest[value] = max(found, _largest(array))
        error = _error(node, arrays, context)
        if error is not None:
            seen.errors[node] = max(seen.errors.get(node, 0.0), error)


def _array(value: ir.Value, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    tensor = stored_tensor(value)
    return tensor.numpy() if tensor is not None else arrays.get(str(value.name))


def _largest(array: np.ndarray) -> float:
    sizes = np.abs(array)
    return float(sizes.max(initial=0.0, where=sizes < MASKED))


def _error(
    node: ir.Node, arrays: Mapping[str, np.ndarray], context: PassContext
) -> float | None:
    """Returns by how much a node's results change when what it reads is rounded.

    None where nothing is lost by that but the rounding itself, or torch cannot run the node.
    """
    given = list(dict.fromkeys(value for value in node.inputs if value is not None))
    floats = [value for value in given if is_float32(value)]
    integer = not any(is_float32(value) for value in node.outputs)
    if not floats or (node.op_type in _EXACT and not integer):
        return None
    if node.op_type == "QuantizeLinear" or context.runner.unsupported([node]):
        return None
    exact = [array for value in given if (array := _array(value, arrays)) is not None]
    if len(exact) < len(given):
        return None
    module = context.runner.segment([node], given, list(node.outputs))
    halves = [
        as_half(array).astype(np.float32) if is_float32(value) else array
        for value, array in zip(given, exact, strict=True)
    ]
    try:
        with torch.no_grad():
            wanted, found = (module(*map(_tensor, numbers)) for numbers in (exact, halves))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None  # torch has other limits than the runtime
    return max(map(_change, wanted, found), default=0.0)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _change(wanted: torch.Tensor, found: torch.Tensor) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    if not wanted.is_floating_point():
        return float((wanted != found).float().mean())
    real = wanted.isfinite() & (wanted.abs() < MASKED)
    size = wanted.where(real, 0.0).square().mean().sqrt()
    error = (found - wanted).where(real, 0.0)
    worst = error.nan_to_num(nan=float("inf")).square().mean().sqrt()
    return float(worst / size) if size > 0 else 0.0

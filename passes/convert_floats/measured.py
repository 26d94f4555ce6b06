"""What float16 would do to each node of a graph, seen on samples.

The graph is run in torch, node by node. Each is run once more on the same numbers rounded to
float16. That tells an angle of 1000 radians, whose cosine rounding would spoil, from one of 1,
and the difference of two numbers that are nearly equal from any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Feeds
from ...ir.units import stored_tensor
from ..engine.execution.exposing import exposing
from ..engine.execution.samples import Samples
from ..engine.pipeline.base import PassContext
from .rounding import LARGEST, MASKED, as_half
from .typing_rules import is_float32

_UNHARMED = {  # by rounding what they read: they move numbers, or add up many products
    *("Cast", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose"),
    *("DequantizeLinear", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
    *("Gemm", "Identity", "MatMul", "MatMulNBits", "MaxPool", "Mul", "Neg", "Pad", "Relu"),
    *("Reshape", "ScatterElements", "ScatterND", "Shape", "Slice", "Split", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze", "Where"),
}
_NUMBERS = "biuf"  # kinds of numpy types that torch has too
Tensors = dict[ir.Value, torch.Tensor]


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


def watch(model: ir.Model, context: PassContext, samples: Samples) -> Seen:
    """Runs samples and looks at every number that nodes of the main graph read and make.

    Args:
        model: The graph.
        context: Runs single nodes in torch, and in the target runtime the whole graph with
            nodes that torch cannot run.
        samples: The samples.
    """
    watcher = _Watcher(model, context)
    for sample in context.progress.track(samples, len(samples), "ranges of floats"):
        watcher.run(sample.arrays)
    return watcher.seen


class _Watcher:
    """Runs one graph on sample after sample.

    Attributes:
        seen: What was seen so far.
    """

    def __init__(self, model: ir.Model, context: PassContext) -> None:
        self.seen = Seen()
        self._model, self._context = model, context
        self._nodes = list(model.graph)
        self._foreign = context.runner.unsupported(self._nodes)
        self._modules: dict[ir.Node, torch.nn.Module] = {}
        self._reads = Counter(value for node in self._nodes for value in _given(node))

    def run(self, feeds: Feeds) -> None:
        """Runs one sample, and forgets every value once nothing reads it any more."""
        known = self._from_runtime(feeds)
        for value in self._model.graph.inputs:
            array = feeds.get(str(value.name))
            if array is not None and array.dtype.kind in _NUMBERS:
                known[value] = _tensor(array)
                self._note(value, known[value])
        left = Counter(self._reads)
        for node in self._nodes:
            if node not in self._foreign:
                self._run(node, known)
            for value in node.outputs:
                if value in known:
                    self._note(value, known[value])
            for value in _given(node):
                left[value] -= 1
                if not left[value]:
                    known.pop(value, None)

    def _run(self, node: ir.Node, known: Tensors) -> None:
        """Computes a node, if all that it reads is known."""
        given = _given(node)
        for value in given:
            tensor = stored_tensor(value) if is_float32(value) else None
            if tensor is not None and value not in known:
                known[value] = _tensor(tensor.numpy())
                self._note(value, known[value])
        if any(value not in known and stored_tensor(value) is None for value in given):
            return
        fed = [value for value in given if value in known]
        made = self._compute(node, fed, [known[value] for value in fed])
        if made is None:
            return
        error = self._error(node, fed, known, made)
        if error is not None:
            self.seen.errors[node] = max(self.seen.errors.get(node, 0.0), error)
        known.update(zip(_results(node), made, strict=True))

    def _compute(
        self, node: ir.Node, fed: Sequence[ir.Value], tensors: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...] | None:
        if node not in self._modules:
            segment = self._context.runner.segment([node], fed, _results(node))
            self._modules[node] = segment
        try:
            with torch.no_grad():
                found: tuple[torch.Tensor, ...] = self._modules[node](*tensors)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # torch has other limits than the runtime
        return found

    def _error(
        self,
        node: ir.Node,
        fed: Sequence[ir.Value],
        known: Tensors,
        made: Sequence[torch.Tensor],
    ) -> float | None:
        """Returns by how much results change when what a node reads is rounded.

        None where nothing is lost by that but the rounding itself.
        """
        exact = all(is_float32(value) for value in _results(node))
        if not any(map(is_float32, fed)) or (node.op_type in _UNHARMED and exact):
            return None
        if node.op_type == "QuantizeLinear":
            return None
        halves = [_rounded(known[one]) if is_float32(one) else known[one] for one in fed]
        found = self._compute(node, fed, halves)
        return None if found is None else max(map(_change, made, found), default=0.0)

    def _note(self, value: ir.Value, tensor: torch.Tensor) -> None:
        if is_float32(value) and tensor.numel():
            sizes = tensor.abs()
            largest = float(sizes.where(sizes < MASKED, 0.0).max())
            self.seen.largest[value] = max(self.seen.largest.get(value, 0.0), largest)

    def _from_runtime(self, feeds: Feeds) -> Tensors:
        """Returns what nodes make that torch cannot run."""
        made = [
            value
            for node in self._foreign
            for value in _results(node)
            if isinstance(value.type, ir.TensorType)
        ]
        if not made:
            return {}
        with self._context.runner.session(exposing(self._model, made)) as session:
            found = session.run(feeds, [str(value.name) for value in made])
        arrays = {value: found[str(value.name)] for value in made}
        return {
            value: _tensor(array)
            for value, array in arrays.items()
            if array.dtype.kind in _NUMBERS
        }


def _given(node: ir.Node) -> list[ir.Value]:
    """Returns what a node reads, each value once."""
    return list(dict.fromkeys(value for value in node.inputs if value is not None))


def _results(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.outputs if value.name]


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(as_half(tensor.numpy()).astype(np.float32))


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

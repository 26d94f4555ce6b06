"""Runs a graph in torch, node by node, under the eyes of whoever wants to look at each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Feeds
from ...ir.units import stored_tensor
from ..engine.execution.exposing import exposing
from ..engine.pipeline.base import PassContext
from .typing_rules import is_float32

_NUMBERS = "biuf"  # kinds of numpy types that torch has too
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Call:
    """A node about to be computed.

    Attributes:
        node: The node.
        values: What it reads.
        tensors: The numbers.
        compute: Computes its results from such numbers; None where torch cannot.
    """

    node: ir.Node
    values: Sequence[ir.Value]
    tensors: Sequence[torch.Tensor]
    compute: Callable[[Sequence[torch.Tensor]], Tensors | None]


Visit = Callable[[Call], Tensors | None]


class Interpreter:
    """Runs the main graph of a model.

    What torch cannot run comes from the target runtime, exact. Where that is not known either
    (a sequence, say), the nodes behind it are left out.
    """

    def __init__(self, model: ir.Model, context: PassContext) -> None:
        """Prepares to run ``model``.

        Args:
            model: The graph; it has to stay as it is.
            context: Runs single nodes in torch, and the whole graph in the runtime.
        """
        self._model, self._context = model, context
        self._nodes = list(model.graph)
        self._foreign = context.runner.unsupported(self._nodes)
        self._modules: dict[ir.Node, torch.nn.Module] = {}
        self._reads = Counter(value for node in self._nodes for value in _given(node))

    def run(self, feeds: Feeds, visit: Visit) -> None:
        """Runs one sample; a value is forgotten once nothing reads it any more.

        Args:
            feeds: The sample.
            visit: Computes each node; what it returns is what later nodes read.
        """
        known = self._from_runtime(feeds)
        for value in self._model.graph.inputs:
            array = feeds.get(str(value.name))
            if array is not None and array.dtype.kind in _NUMBERS:
                known[value] = tensor_of(array)
        left = Counter(self._reads)
        for node in self._nodes:
            if node not in self._foreign:
                self._run(node, known, visit)
            for value in _given(node):
                left[value] -= 1
                if not left[value]:
                    known.pop(value, None)

    def _run(self, node: ir.Node, known: dict[ir.Value, torch.Tensor], visit: Visit) -> None:
        given = _given(node)
        for value in given:
            tensor = stored_tensor(value) if is_float32(value) else None
            if tensor is not None and value not in known:
                known[value] = tensor_of(tensor.numpy())
        if any(value not in known and stored_tensor(value) is None for value in given):
            return
        fed = [value for value in given if value in known]

        def compute(tensors: Sequence[torch.Tensor]) -> Tensors | None:
            return self._compute(node, fed, tensors)

        made = visit(Call(node, fed, [known[value] for value in fed], compute))
        if made is not None:
            known.update(zip(results(node), made, strict=True))

    def _compute(
        self, node: ir.Node, fed: Sequence[ir.Value], tensors: Sequence[torch.Tensor]
    ) -> Tensors | None:
        if node not in self._modules:
            segment = self._context.runner.segment([node], fed, results(node))
            self._modules[node] = segment
        try:
            with torch.no_grad():
                found: Tensors = self._modules[node](*tensors)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # torch has other limits than the runtime
        return found

    def _from_runtime(self, feeds: Feeds) -> dict[ir.Value, torch.Tensor]:
        """Returns what nodes make that torch cannot run."""
        made = [
            value
            for node in self._foreign
            for value in results(node)
            if isinstance(value.type, ir.TensorType)
        ]
        if not made:
            return {}
        with self._context.runner.session(exposing(self._model, made)) as session:
            found = session.run(feeds, [str(value.name) for value in made])
        arrays = {value: found[str(value.name)] for value in made}
        return {
            value: tensor_of(array)
            for value, array in arrays.items()
            if array.dtype.kind in _NUMBERS
        }


def _given(node: ir.Node) -> list[ir.Value]:
    """Returns what a node reads, each value once."""
    return list(dict.fromkeys(value for value in node.inputs if value is not None))


def results(node: ir.Node) -> list[ir.Value]:
    """Returns what a node makes; outputs that are left out have no name."""
    return [value for value in node.outputs if value.name]


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Returns an array as a tensor of its own type."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))

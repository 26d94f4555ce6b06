"""Runs two graphs side by side on the same inputs, block by block, and compares them.

What leaves a block must be what left it before the pass. Only a value whose channels were
moved or scaled, as a fold inside the next blocks wants it, goes on as it is; outputs of the
graph may not even be that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ....ir import (
    Block,
    BlockId,
    Feeds,
    all_nodes,
    blocks_of,
    find_units,
    inline_functions,
    note_of,
    operands,
)
from ..execution.devices import CPU
from ..execution.executor import BlockRunner
from ..execution.samples import Samples
from ..pipeline.base import Runner
from .difference import Difference, find_difference, is_rearranged
from .without_rounding import without_rounding

_TOLERANCES = {ir.DataType.BFLOAT16: 5e-2, ir.DataType.FLOAT16: 1e-2}
_NARROWED = 5e-2  # of a block in float16 from the same inputs
_TOLERANCE = 1e-3  # float32 sums in another order stay below a hundredth of it
Tensors = dict[str, torch.Tensor]


class CannotRun(Exception):
    """The graph before the pass does not run here; the text says why."""


@dataclass(frozen=True)
class Mismatch:
    """Two graphs that do not compute the same.

    Attributes:
        difference: The first value that is wrong.
        node: What makes it in the graph before, as text.
        unit: The unit that it reads, or the nearest one before; empty when there is none.
    """

    difference: Difference
    node: str
    unit: str

    def __str__(self) -> str:
        unit = f"unit {self.unit!r}: " if self.unit else ""
        return f"{unit}{self.node}: {self.difference}"


class Lockstep:
    """A graph before and after a pass."""

    def __init__(
        self,
        before: ir.Model,
        after: ir.Model,
        runner: Runner,
        *,
        narrowed: bool = False,
        device: str = CPU,
    ) -> None:
        """Prepares both.

        Args:
            before: A copy of the graph as it was; changed here.
            after: The graph as it is.
            runner: Runs blocks.
            narrowed: Whether floats have become float16.
            device: Where to run blocks.

        Raises:
            CannotRun: Some operator of the graph before cannot be run block by block.
        """
        inline_functions(before)
        self._before, self._after = without_rounding(before), without_rounding(after)
        for model in (self._before, self._after):
            refused = runner.unsupported(all_nodes(model.graph))
            if refused:
                raise CannotRun(next(iter(refused.values())))
        self._runner, self._device = runner, device
        self._tolerance = _NARROWED if narrowed else _tolerance(self._before)
        self._narrowed = narrowed
        self._renamed = _renamed(self._before, self._after)

    def mismatch(self, feeds: Feeds) -> Mismatch | None:
        """Compares the graphs on one sample.

        Raises:
            CannotRun: The graph before fails on the sample.
        """
        old, new = (
            _Side(model, self._runner, feeds, self._device)
            for model in (self._before, self._after)
        )
        if [block.index for block in old.blocks] != [block.index for block in new.blocks]:
            old.join_blocks()
            new.join_blocks()
        for first, second in zip(old.blocks, new.blocks, strict=True):
            try:
                made = old.run(first, first.outputs)
            except Exception as error:  # operators fail in ways of their own
                raise CannotRun(_line(error)) from error
            try:
                now = new.run(second, second.outputs)
            except Exception as error:
                if self._narrowed:  # torch computes less on the CPU in float16
                    raise CannotRun(_line(error)) from error
                return self._failure(first, error)
            found = self._compare(first, made, now)
            if found is not None:
                return self._blamed(old, new, first, second) or self._told(first, found)
            old.keep(made)
            new.keep(now)
            new.keep(self._equal(made, now))
        return None

    def _equal(self, old: Tensors, new: Tensors) -> Tensors:
        """Returns old values for new ones, so that rounding does not add up over blocks."""
        return {
            name: value.to(new[name].dtype)
            for name, value in old.items()
            if name in new and not self._differs(name, value, new[name])
        }

    def _differs(
        self, name: str, expected: torch.Tensor, actual: torch.Tensor
    ) -> Difference | None:
        masks = self._narrowed
        return find_difference(name, expected, actual, self._tolerance, any_mask=masks)

    def _compare(self, block: Block, old: Tensors, new: Tensors) -> Difference | None:
        outputs = {value.name for value in block.outputs if value.is_graph_output()}
        for name, expected in old.items():
            actual = new.get(self._renamed.get(name, name))
            if actual is None:  # something else crosses here now; what follows will tell
                continue
            found = self._differs(name, expected, actual)
            if found is None:
                continue
            if name in outputs or not is_rearranged(expected, actual, self._tolerance):
                return found
        return None

    def _blamed(self, old: _Side, new: _Side, first: Block, second: Block) -> Mismatch | None:
        """Looks inside a block for the first value that is wrong, not just moved or scaled."""
        inside = [value for node in second.nodes for value in node.outputs if value.name]
        names = {value.name for value in inside}
        wanted = [
            value for node in first.nodes for value in node.outputs if value.name in names
        ]
        made, now = old.run(first, wanted), new.run(second, inside)
        for value in wanted:
            expected, actual = made[str(value.name)], now[str(value.name)]
            found = self._differs(str(value.name), expected, actual)
            if found is not None and not is_rearranged(expected, actual, self._tolerance):
                return self._told(first, found)
        return None

    def _told(self, block: Block, found: Difference) -> Mismatch:
        node = next(
            node
            for node in block.nodes
            if any(value.name == found.value for value in node.outputs)
        )
        return Mismatch(found, f"{node.op_type} {node.name!r}", _unit_of(node, self._before))

    def _failure(self, block: Block, error: Exception) -> Mismatch:
        found = Difference(
            str(block.outputs[-1].name), (), "a value", f"an error: {_line(error)}"
        )
        return self._told(block, found)


class _Side:
    """One of the two graphs with a sample on its way through it."""

    def __init__(self, model: ir.Model, runner: Runner, feeds: Feeds, device: str) -> None:
        self._model, self._runner = model, runner
        self._samples = Samples([_typed(feeds, model)], device=device)
        noted = all(note_of(node, BlockId) is not None for node in model.graph)
        self.blocks = blocks_of(model) if noted else [_whole(model)]
        self._executor = BlockRunner(runner, self.blocks)

    def join_blocks(self) -> None:
        """Takes the graph as a single block."""
        self.blocks = [_whole(self._model)]
        self._executor = BlockRunner(self._runner, self.blocks)

    def run(self, block: Block, wanted: Sequence[ir.Value]) -> Tensors:
        """Runs a block; returns the values that are wanted of it, on the CPU."""
        (found,) = self._executor.forward(self._samples, block, wanted, go_on=False)
        return {str(value.name): found[str(value.name)].cpu() for value in wanted}

    def keep(self, values: Tensors) -> None:
        """Leaves values to later blocks; those of a few tokens are small, and all stay."""
        (sample,) = self._samples
        sample.values.update(values)


def _typed(feeds: Feeds, model: ir.Model) -> Feeds:
    """Returns feeds in the types of a graph's inputs, where its caches are float16."""
    halves = {one.name for one in model.graph.inputs if one.dtype == ir.DataType.FLOAT16}
    return {
        name: array.astype(np.float16) if name in halves else array
        for name, array in feeds.items()
    }


def _tolerance(model: ir.Model) -> float:
    """Returns what the coarsest type that the model computes in can explain."""
    types = {value.dtype for node in model.graph for value in node.outputs}
    types |= {unit.tensor.dtype for unit in find_units(model)}
    found = (_TOLERANCES[dtype] for dtype in types if dtype in _TOLERANCES)
    return max(found, default=_TOLERANCE)


def _renamed(before: ir.Model, after: ir.Model) -> dict[str, str]:
    """Maps outputs of the graph to what stands in their place."""
    pairs = zip(before.graph.outputs, after.graph.outputs, strict=True)
    return {str(old.name): str(new.name) for old, new in pairs}


def _whole(model: ir.Model) -> Block:
    inputs = tuple(value for value in model.graph.inputs if not value.is_initializer())
    made = [value for value in model.graph.outputs if value.producer() is not None]
    return Block(0, tuple(model.graph), inputs, tuple(made))


def _unit_of(node: ir.Node, model: ir.Model) -> str:
    """Returns the unit that ``node`` reads, or the first that its inputs come from."""
    readers = {use.node: unit.name for unit in find_units(model) for use in unit.uses}
    todo, seen = [node], {node}
    while todo:
        one = todo.pop(0)
        if one in readers:
            return readers[one]
        for producer in _producers(one):
            if producer not in seen:
                seen.add(producer)
                todo.append(producer)
    return ""


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in operands(node):
        producer = value.producer()
        if producer is not None:
            yield producer


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

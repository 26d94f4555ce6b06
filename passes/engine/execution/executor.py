"""The executor: runs the blocks of a graph in torch, forward and backward, one at a time.

What one block leaves for later ones waits at its boundary, in memory or on disk, so that no
more than the activations of one block are in memory at once. A backward run computes its block
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from ....ir import Unit, operands
from ....ir.analysis.blocks import Block
from ..pipeline.base import Runner
from .devices import free_bytes
from .passages import Passage, Room
from .samples import Sample, Values

# By the value of the weight: a tensor, or a function of parameters that makes one.
Weights = Mapping[ir.Value, torch.Tensor | Callable[[], torch.Tensor]]
Ends = Callable[[Values], Mapping[str, torch.Tensor]]
_OWN: Weights = MappingProxyType({})  # the graph's
_LEAST_FREE = 0.3  # of a device's memory: what the blocks that wait there must leave


@dataclass(frozen=True)
class _Lowered:
    """A block as a module, with what it takes besides its inputs.

    Attributes:
        inputs: Names of what the module takes: inputs of the block, leaves, weights.
        outputs: Names of what it returns.
        module: The block, without what leads to the leaves alone.
        before: Makes the leaves, values inside at which gradients start; None without leaves.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: torch.nn.Module
    before: _Lowered | None = None

    def run(self, given: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
        made = self.module.to(device)(*(given[name] for name in self.inputs))
        return dict(zip(self.outputs, made, strict=True))


class BlockRunner:
    """Runs any blocks of one graph, with the graph's weights or others in their place.

    Attributes:
        blocks: The blocks, in execution order.
    """

    def __init__(
        self, runner: Runner, blocks: Sequence[Block], ends: Iterable[ir.Value] = ()
    ) -> None:
        """Lowers nothing yet: every block is lowered when it first runs.

        Args:
            runner: Lowers blocks.
            blocks: The blocks, in execution order.
            ends: Outputs of blocks to leave at boundaries though no later block reads them.
        """
        self.blocks = tuple(blocks)
        self._runner = runner
        self._ends = frozenset(ends)
        self._last = {value: at for at, block in enumerate(blocks) for value in block.inputs}
        self._place = {block: at for at, block in enumerate(blocks)}
        self._reads = [
            {value for node in block.nodes for value in node.inputs if value}
            for block in blocks
        ]
        self._lowered: dict[Block, tuple[object, _Lowered]] = {}

    def handed_on(self, block: Block) -> list[ir.Value]:
        """Returns the outputs of a block that later blocks read, or that are ends."""
        place = self._place[block]
        return [
            value
            for value in block.outputs
            if value in self._ends or self._last.get(value, -1) > place
        ]

    def forward(
        self,
        samples: Iterable[Sample],
        block: Block,
        wanted: Iterable[ir.Value] = (),
        weights: Weights = _OWN,
        *,
        go_on: bool = True,
    ) -> Iterator[Values]:
        """Runs all samples through one block, which is lowered with the weights it has now.

        Args:
            samples: Samples that have been through the blocks before.
            block: The block.
            wanted: Values to yield besides the inputs: what the block makes, or constants.
            weights: What to use in place of the graph's own weights.
            go_on: Whether samples pass the block: leave what later blocks read, and drop what
                none reads any more.

        Yields:
            Of each sample, what the block reads and ``wanted``.
        """
        handed = self.handed_on(block) if go_on else []
        self._lowered.pop(block, None)  # its weights may have changed
        lowered = self._lower(block, [*handed, *wanted], weights)
        del self._lowered[block]  # it would hold weights that the caller replaces
        place = self._place[block]
        used_up = [v for v in block.inputs if self._last[v] == place and v not in self._ends]
        for sample in samples:
            with torch.no_grad():
                given = self._given(sample, block, weights)
                made = lowered.run(given, sample.device)
            if go_on:
                sample.values.update((name, made[name]) for name in _names(handed))
                _drop(sample.values, _names(used_up))
            yield Values(given | made, sample.padding)

    def run(
        self,
        sample: Sample,
        weights: Weights = _OWN,
        *,
        first: int = 0,
        stop: int | None = None,
    ) -> None:
        """Runs one sample through the blocks ``first`` to ``stop`` and keeps all it leaves.

        Lowered blocks are used again, so the graph's own weights must stay as they are.

        Args:
            sample: The sample; values that it has already are replaced.
            weights: What to use in place of the graph's own weights.
            first: Place of the first block to run.
            stop: Place of the first block not to run; None runs to the end.
        """
        for block in self.blocks[first:stop]:
            handed = self.handed_on(block)
            if not handed:
                continue
            lowered = self._lower(block, handed, weights)
            with torch.no_grad():
                made = lowered.run(self._given(sample, block, weights), sample.device)
            self._make_room(block, sample.device)
            sample.values.update(made)

    def record(self, sample: Sample, weights: Weights, most: int) -> dict[Block, Passage]:
        """Runs one sample through all blocks like ``run``, and keeps what ``backward`` needs.

        A block for which there is no more room is left out; ``backward`` has to compute it
        again, which gives the same numbers.

        Args:
            sample: The sample.
            weights: What to use in place of the graph's own weights.
            most: Bytes that may be kept.
        """
        room, kept = Room(most), {}
        for place, block in enumerate(self.blocks):
            handed = self.handed_on(block)
            if room.left <= 0 or not handed:
                self.run(sample, weights, first=place, stop=place + 1)
                continue
            with room.counted():
                passage = self._with_gradients(sample, block, handed, weights)
            for name in _names(handed):
                sample.values[name] = passage.values[name].detach()
            if room.left > 0:
                kept[block] = passage
        return kept

    def branch(self, sample: Sample, weights: Weights) -> Sample:
        """Returns a sample that has run with other weights; what came before them is shared.

        Args:
            sample: A sample that has run through all blocks with the graph's own weights.
            weights: What to use in place of some of them.
        """
        other = Sample(sample.arrays, sample.padding, device=sample.device)
        other.values.update(sample.values)
        reading = (at for at, reads in enumerate(self._reads) if reads & weights.keys())
        self.run(other, weights, first=next(reading, len(self.blocks)))
        return other

    def backward(
        self,
        sample: Sample,
        block: Block,
        *,
        ends: Ends | None = None,
        leaves: Iterable[ir.Value] = (),
        taps: Iterable[ir.Value] = (),
        wanted: Iterable[ir.Value] = (),
        weights: Weights = _OWN,
        passage: Passage | None = None,
    ) -> tuple[Values, Values]:
        """Runs one block again with gradients, from its outputs to its inputs and weights.

        Gradients of float inputs are added to those of the sample, and what the block has left
        is dropped. Parameters behind functions in ``weights`` accumulate theirs in ``grad``.

        Args:
            sample: A sample that has run up to this block, and back through all later ones.
            block: The block.
            ends: Returns gradients of the loss at outputs of the block, by name, given values.
            leaves: Values inside whose makers pass no gradient on, such as lookups: gradients
                start there.
            taps: Other values of the block whose gradients to return.
            wanted: Further values to return.
            weights: What to use in place of the graph's own weights, as in ``run``. Tensors
                among them are differentiated.
            passage: The block as ``record`` has run it with these weights, which saves running
                it again; there are no leaves, taps and wanted values then.

        Returns:
            What the block reads, makes and is asked for; and the gradients at inputs, leaves,
            taps and tensors in ``weights``, where one arrives.
        """
        handed, taps = self.handed_on(block), list(taps)
        if passage is None:
            asked = [*handed, *taps, *wanted]
            passage = self._with_gradients(sample, block, asked, weights, list(leaves))
        values, sources = passage.values, passage.sources
        for name in _names(taps):
            if values[name].requires_grad:
                values[name].retain_grad()
                sources[name] = values[name]
        _descend(values, _names(handed), sample, ends)
        slopes = {n: s.grad.detach() for n, s in sources.items() if s.grad is not None}
        self._leave(sample, block, slopes)
        self._make_room(block, sample.device)
        return values, Values(slopes, sample.padding)

    def _with_gradients(
        self,
        sample: Sample,
        block: Block,
        asked: Sequence[ir.Value],
        weights: Weights,
        leaves: Sequence[ir.Value] = (),
    ) -> Passage:
        """Runs a block so that gradients can come back."""
        lowered = self._lower(block, asked, weights, leaves)
        given = self._given(sample, block, weights)
        if lowered.before is not None:
            with torch.no_grad():
                given |= lowered.before.run(given, sample.device)
        sources = {
            name: given[name].detach().requires_grad_()
            for name in lowered.inputs
            if given[name].is_floating_point() and given[name].is_leaf
        }
        given |= sources
        values = Values(given | lowered.run(given, sample.device), sample.padding)
        return Passage(values, sources)

    def _make_room(self, block: Block, device: str) -> None:
        """Drops lowered blocks, the earliest first, while a device is short of memory."""
        while len(self._lowered) > 1:
            memory = free_bytes(device)
            if memory is None or memory[0] >= _LEAST_FREE * memory[1]:
                return
            del self._lowered[next(one for one in self._lowered if one is not block)]

    def _leave(self, sample: Sample, block: Block, slopes: Mapping[str, torch.Tensor]) -> None:
        """Adds gradients to what waits at the block's inputs; drops what its outputs left."""
        _drop(sample.values, _names(block.outputs))
        _drop(sample.gradients, _names(block.outputs))
        for name in _names(block.inputs):
            if name in slopes and name not in sample.inputs:
                earlier = sample.gradients.get(name)
                sample.gradients[name] = (
                    slopes[name]
                    if earlier is None
                    else earlier.to(sample.device) + slopes[name]
                )

    def _given(
        self, sample: Sample, block: Block, weights: Weights
    ) -> dict[str, torch.Tensor]:
        """Returns what a block reads of earlier ones, and weights that it has to be given."""
        given = {name: sample[name] for name in _names(block.inputs)}
        for value in self._swapped(block, weights):
            weight = weights[value]
            given[str(value.name)] = weight() if callable(weight) else weight.to(sample.device)
        return given

    def _swapped(self, block: Block, weights: Weights) -> list[ir.Value]:
        """Returns the weights that a block has to be given."""
        return [value for value in weights if value in self._reads[self._place[block]]]

    def _lower(
        self,
        block: Block,
        outputs: Iterable[ir.Value],
        weights: Weights,
        leaves: Sequence[ir.Value] = (),
    ) -> _Lowered:
        """Lowers what of a block makes ``outputs``, unless it was asked for the last time."""
        inputs = [*block.inputs, *self._swapped(block, weights)]
        asked = (tuple(outputs), tuple(inputs), tuple(leaves))
        earlier = self._lowered.get(block)
        if earlier is not None and earlier[0] == asked:
            return earlier[1]
        lowered = self._segment(block, [*inputs, *leaves], asked[0])
        if leaves:
            lowered = replace(lowered, before=self._segment(block, inputs, leaves))
        self._lowered[block] = asked, lowered
        return lowered

    def _segment(
        self, block: Block, inputs: Sequence[ir.Value], outputs: Iterable[ir.Value]
    ) -> _Lowered:
        made = [value for value in dict.fromkeys(outputs) if value not in inputs]
        nodes = _needed(block.nodes, made, inputs)
        module = self._runner.segment(nodes, inputs, made)
        return _Lowered(tuple(_names(inputs)), tuple(_names(made)), module)


def weight_of(unit: Unit, matrix: np.ndarray | None = None) -> torch.Tensor:
    """Returns ``matrix`` (rows x columns), or else a copy, in a unit's own layout and type."""
    array = torch.from_numpy(unit.stored_layout(unit.matrix() if matrix is None else matrix))
    return array.to(to_torch_dtype(unit.tensor.dtype))


def _descend(values: Values, handed: Iterable[str], sample: Sample, ends: Ends | None) -> None:
    """Follows gradients, from the loss and later blocks, to all that outputs depend on."""
    reaching = dict(ends(values)) if ends is not None else {}
    for name in handed:
        later = sample.gradients.get(name)
        if later is not None:
            later = later.to(sample.device)
            reaching[name] = reaching[name] + later if name in reaching else later
    names = [name for name in reaching if values[name].requires_grad]
    if names:
        torch.autograd.backward([values[n] for n in names], [reaching[n] for n in names])


def _needed(
    nodes: Sequence[ir.Node], outputs: Iterable[ir.Value], inputs: Iterable[ir.Value]
) -> list[ir.Node]:
    """Returns the nodes on the way from ``inputs`` to ``outputs``."""
    given, wanted, needed = set(inputs), set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            needed.append(node)
            wanted |= set(operands(node)) - given
    return needed[::-1]


def _drop(tensors: MutableMapping[str, torch.Tensor], names: Iterable[str]) -> None:
    for name in names:
        if name in tensors:
            del tensors[name]


def _names(values: Iterable[ir.Value]) -> list[str]:
    return [str(value.name) for value in values]

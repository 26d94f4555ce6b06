"""What a sweep does with one shard of samples: its bits do not depend on who does it.

Going forward, a shard runs through all blocks, and what each leaves at its boundary is written
down. Going back, it runs through one block, from what others have written down, and gives the
sums of that block. Torch is to compute on one thread, for it adds up differently on more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Calibration, Unit
from ...ir.analysis.blocks import Block
from ..engine.execution.executor import BlockRunner
from ..engine.execution.in_order import Step
from ..engine.execution.samples import Sample, Samples
from ..engine.pipeline.base import PassContext
from ..engine.statistics.moments import MomentSums
from ..engine.statistics.objective import Objective
from .gathering import Gathering, Tap, taps_of
from .journal import Journal
from .stats_files import Statistics

SHARD = 8  # samples; part of what a result depends on
EXACT_BYTES = 256 << 20  # boundaries that together take more are kept in bfloat16

_ACTIVATIONS, _LOGITS = 3, 6  # copies that a block holds of what products read and make
_BACKWARD = 3.0  # times a run forward: that again, back, and the moments


@dataclass(frozen=True)
class Shards:
    """The samples of a sweep, in shards.

    Attributes:
        blocks: The graph in execution order.
        units: The units to gather moments for.
        objective: What the divergence is measured on.
        calibration: The samples.
        stats: Where the moments of each block belong.
        context: Lowers blocks; supplies the seed.
    """

    blocks: Sequence[Block]
    units: Sequence[Unit]
    objective: Objective
    calibration: Calibration
    stats: Statistics
    context: PassContext

    @property
    def all(self) -> range:
        """The numbers of all shards."""
        return range(-(-len(self._samples) // SHARD))

    def of(self, shard: int) -> list[Sample]:
        """Returns the samples of a shard."""
        return self._samples[shard * SHARD : (shard + 1) * SHARD]

    @cached_property
    def journal(self) -> Journal:
        """What the sweep has left at boundaries."""
        return Journal(self.stats.unfinished, self.stats.index.key)

    def need(self, place: int) -> int:
        """Estimates the bytes that a shard takes on its way back through a block."""
        sums = 0
        for tap in self._taps[self.blocks[place]]:
            rows, columns = tap.moments.unit.shape
            across = rows if tap.name("coupling") in self.stats.wanted else 0
            sums += 4 * (columns**2 + across**2)
        return sums + self.need_forward(place)

    def need_forward(self, place: int) -> int:
        """Estimates the bytes of what a block's products read and make, and of its weights."""
        tokens = max(
            (int(np.prod(a.shape[:2])) for a in self._samples[0].arrays.values()), default=1
        )
        total = 0
        for tap in self._taps[self.blocks[place]]:
            rows, columns = tap.moments.unit.shape
            copies = _LOGITS if tap.output in self.objective.outputs else _ACTIVATIONS
            if tap.use.kind == "product":
                total += 4 * tokens * (_ACTIVATIONS * columns + copies * rows)
            elif tap.use.takes_floats:
                total += 4 * rows * columns
        return total

    def cost_forward(self, place: int) -> float:
        """Returns what a sample takes through a block: the weights that it multiplies by."""
        products = (tap for tap in self._taps[self.blocks[place]] if tap.use.kind != "lookup")
        return 1.0 + sum(tap.moments.unit.size for tap in products)

    def cost_backward(self, place: int) -> float:
        """Returns what a sample takes back through a block, in the same unit."""
        return _BACKWARD * self.cost_forward(place)

    def forward(self, stop: int, shard: int, step: Step) -> int:
        """Writes down what every block before ``stop`` leaves; returns how many bytes."""
        samples, written, runner = self.of(shard), 0, self._runner()
        for place, block in enumerate(self.blocks[:stop]):
            names = [str(value.name) for value in runner.handed_on(block)]
            for _ in runner.forward(samples, block):
                step(self.cost_forward(place))
            left = [{name: sample.values[name] for name in names} for sample in samples]
            narrow = self._computed_from_weights if self._is_much(left) else frozenset()
            written += self.journal.write("forward", place, shard, left, narrow=narrow)
        for sample in samples:
            sample.clear()
        return written

    def backward(self, place: int, shard: int, step: Step) -> Gathering:
        """Runs a shard back through one block; writes down what reaches the one before."""
        part, samples = self.gathering(place), self.of(shard)
        self._recall(place, shard, samples)
        for sample in samples:
            part.add(sample)
            sample.values.clear()
            step(self.cost_backward(place))
        if place:
            gradients = [sample.gradients for sample in samples]
            self.journal.write("backward", place, shard, gradients)
        for sample in samples:
            sample.clear()
        return part

    def gathering(self, place: int) -> Gathering:
        """Returns the sums of a block over no samples."""
        block = self.blocks[place]
        sums = MomentSums(self.stats.wanted)
        return Gathering(self._runner(), block, self._taps[block], self.objective, sums)

    def _is_much(self, left: Sequence[Mapping[str, torch.Tensor]]) -> bool:
        size = sum(one.nbytes for tensors in left for one in tensors.values())
        return size * len(self.all) * len(self.blocks) > EXACT_BYTES

    @cached_property
    def _computed_from_weights(self) -> frozenset[str]:
        """Names of values that units have a part in, which are noisier than bfloat16.

        Others, such as masks, positions and angles, have to stay as they are.
        """
        uses = {use.node for unit in self.units for use in unit.uses}
        found: set[ir.Value] = set()
        for node in (node for block in self.blocks for node in block.nodes):
            if node in uses or any(value in found for value in node.inputs):
                found.update(node.outputs)
        return frozenset(str(value.name) for value in found)

    def _recall(self, place: int, shard: int, samples: Sequence[Sample]) -> None:
        """Reads what the block's inputs are, and the gradients that later blocks left."""
        for maker, names in self._makers(self.blocks[place]).items():
            kept = self.journal.read("forward", maker, shard, names)
            for sample, tensors in zip(samples, kept, strict=True):
                sample.values.update(tensors)
        if place + 1 < len(self.blocks):
            kept = self.journal.read("backward", place + 1, shard)
            for sample, tensors in zip(samples, kept, strict=True):
                sample.gradients.update(tensors)

    def _makers(self, block: Block) -> dict[int, set[str]]:
        """Returns the names of the block's inputs by the place of the block that made them."""
        found: dict[int, set[str]] = {}
        for value in block.inputs:
            if value in self._made_by:
                found.setdefault(self._made_by[value], set()).add(str(value.name))
        return found

    def _runner(self) -> BlockRunner:
        """Returns a runner of its own for a shard: others may run at the same time."""
        return BlockRunner(self.context.runner, self.blocks, self.objective.outputs)

    @cached_property
    def _made_by(self) -> dict[ir.Value, int]:
        return {v: place for place, block in enumerate(self.blocks) for v in block.outputs}

    @cached_property
    def _taps(self) -> dict[Block, list[Tap]]:
        return taps_of(self.blocks, self.units)

    @cached_property
    def _samples(self) -> list[Sample]:
        return list(Samples.of(self.context, self.calibration.training))

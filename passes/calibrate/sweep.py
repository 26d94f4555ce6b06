"""Forward over the blocks, then backward in reverse: every unit's moments on the way back.

Samples go in shards of a fixed size. Going forward, a shard runs through all blocks; what each
leaves at its boundary is written down. Going back, all shards run through one block before any
runs through the next, so that the sums of no more than one block are in memory. A block's
moments are written when it is done, and never again: a sweep that is killed goes on after the
last block that it has finished. Sums are added up within a shard and then shard by shard, so
that their bits do not depend on who runs which shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir
import torch

from ...ir import Calibration, MachineError, Unit
from ...ir.analysis.blocks import Block
from ..engine.execution.executor import BlockRunner
from ..engine.execution.samples import Sample, Samples
from ..engine.pipeline.base import PassContext
from ..engine.pipeline.progress import Bar
from ..engine.statistics.moments import MomentSums
from ..engine.statistics.objective import Objective
from .gathering import Gathering, Tap, taps_of
from .journal import Journal
from .stats_files import Statistics

SHARD = 8  # samples; part of what a result depends on
_BACKWARD = 3.0  # times a run forward: that again, back, and the moments
EXACT_BYTES = 256 << 20  # boundaries that together take more are kept in bfloat16


@dataclass(frozen=True)
class Sweep:
    """One sweep over the samples.

    Attributes:
        blocks: The graph in execution order.
        units: The units to gather moments for.
        objective: What the divergence is measured on.
        calibration: The samples.
        stats: Where the moments of each block belong.
        context: Lowers blocks; supplies the seed and the progress.
    """

    blocks: Sequence[Block]
    units: Sequence[Unit]
    objective: Objective
    calibration: Calibration
    stats: Statistics
    context: PassContext

    def run(self) -> None:
        """Gathers the moments of all blocks that have none yet.

        Raises:
            InputError: The samples overflow the model.
            MachineError: There is no room on disk.
        """
        first, count = self._first(), len(self._samples)
        work = sum(self._costs[:first]) + _BACKWARD * sum(self._costs[: first + 1])
        with self.context.progress.bar(
            "calibrating", count * (2 * first + 1), count * work
        ) as bar:
            self._forward(first, bar)
            for place in range(first, -1, -1):
                self._backward(place, bar)
        self._journal.close()

    def _first(self) -> int:
        """Returns the place of the first block, going back, that is still to be done."""
        say, last = self.context.progress.say, len(self.blocks) - 1
        place = last
        while place >= 0 and self.stats.blocks[place].facts(say) is not None:
            place -= 1
        if place in (-1, last) or self._journal.has("backward", place + 1, self._shards):
            return place
        return last

    def _forward(self, stop: int, bar: Bar) -> None:
        """Writes down what every block before ``stop`` leaves at its boundary."""
        for shard in self._shards:
            if all(self._journal.has("forward", at, [shard]) for at in range(stop)):
                for _ in self._of_shard(shard):
                    for cost in self._costs[:stop]:
                        bar.advance(cost)
                continue
            written = self._forward_shard(stop, shard, bar)
            if not shard:
                self._check_room(written * (len(self._shards) - 1))

    def _forward_shard(self, stop: int, shard: int, bar: Bar) -> int:
        """Returns how many bytes it has written."""
        samples, written = self._of_shard(shard), 0
        for place, block in enumerate(self.blocks[:stop]):
            names = [str(value.name) for value in self._runner.handed_on(block)]
            for _ in self._runner.forward(samples, block):
                bar.advance(self._costs[place])
            left = [{name: sample.values[name] for name in names} for sample in samples]
            narrow = self._is_much(left)
            written += self._journal.write("forward", place, shard, left, narrow=narrow)
        for sample in samples:
            sample.clear()
        return written

    def _is_much(self, left: Sequence[Mapping[str, torch.Tensor]]) -> bool:
        size = sum(one.nbytes for tensors in left for one in tensors.values())
        return size * len(self._shards) * len(self.blocks) > EXACT_BYTES

    def _check_room(self, need: int) -> None:
        self._journal.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._journal.folder).free
        if need > free:
            raise MachineError(
                f"what blocks leave for later ones takes {need >> 20} MiB more in"
                f" {self._journal.folder}, where {free >> 20} are free",
                hint="give fewer or shorter samples, or set MPQC_CACHE to another disk",
            )

    def _backward(self, place: int, bar: Bar) -> None:
        """Runs all shards back through one block and writes its moments."""
        total = self._gathering(place)
        for shard in self._shards:
            total.merge(self._backward_shard(place, shard, bar))
        self.stats.write(place, total.sums, total.positions, total.untouched)
        self._journal.forget("forward", place, self._shards)
        self._journal.forget("backward", place + 1, self._shards)

    def _backward_shard(self, place: int, shard: int, bar: Bar) -> Gathering:
        part, samples = self._gathering(place), self._of_shard(shard)
        self._recall(place, shard, samples)
        for sample in samples:
            part.add(sample)
            sample.values.clear()
            bar.advance(_BACKWARD * self._costs[place])
        if place:
            gradients = [sample.gradients for sample in samples]
            self._journal.write("backward", place, shard, gradients)
        for sample in samples:
            sample.clear()
        return part

    def _gathering(self, place: int) -> Gathering:
        block = self.blocks[place]
        sums = MomentSums(self.stats.wanted)
        return Gathering(self._runner, block, self._taps[block], self.objective, sums)

    def _recall(self, place: int, shard: int, samples: Sequence[Sample]) -> None:
        """Reads what the block's inputs are, and the gradients that later blocks left."""
        for maker, names in self._makers(self.blocks[place]).items():
            kept = self._journal.read("forward", maker, shard, names)
            for sample, tensors in zip(samples, kept, strict=True):
                sample.values.update(tensors)
        if place + 1 < len(self.blocks):
            kept = self._journal.read("backward", place + 1, shard)
            for sample, tensors in zip(samples, kept, strict=True):
                sample.gradients.update(tensors)

    def _makers(self, block: Block) -> dict[int, set[str]]:
        """Returns the names of the block's inputs by the place of the block that made them."""
        found: dict[int, set[str]] = {}
        for value in block.inputs:
            if value in self._made_by:
                found.setdefault(self._made_by[value], set()).add(str(value.name))
        return found

    @cached_property
    def _made_by(self) -> dict[ir.Value, int]:
        return {v: place for place, block in enumerate(self.blocks) for v in block.outputs}

    @cached_property
    def _journal(self) -> Journal:
        return Journal(self.stats.unfinished, self.stats.index.key)

    @cached_property
    def _runner(self) -> BlockRunner:
        return BlockRunner(self.context.runner, self.blocks, self.objective.outputs)

    @cached_property
    def _taps(self) -> dict[Block, list[Tap]]:
        return taps_of(self.blocks, self.units)

    @cached_property
    def _costs(self) -> list[float]:
        """What a sample takes to run through each block: the weights that it multiplies by."""
        return [1.0 + _multiplied(self._taps[block]) for block in self.blocks]

    @cached_property
    def _samples(self) -> list[Sample]:
        return list(Samples.of(self.context, self.calibration.training))

    @property
    def _shards(self) -> range:
        return range(-(-len(self._samples) // SHARD))

    def _of_shard(self, shard: int) -> list[Sample]:
        return self._samples[shard * SHARD : (shard + 1) * SHARD]


def _multiplied(taps: Sequence[Tap]) -> int:
    return sum(tap.moments.unit.size for tap in taps if tap.use.kind != "lookup")

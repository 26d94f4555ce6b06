"""Who runs the shards of a sweep: threads of this process, or workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import onnx_ir as ir

from ...ir import Calibration
from ...ir.analysis.blocks import blocks_of
from ..engine.execution.in_order import Step, in_order
from ..engine.pipeline.base import Crew, Item, State
from ..engine.statistics.moments import MomentSums
from ..engine.statistics.objective import Kind, Objective
from .gathering import Gathering
from .shards import Shards
from .stats_files import Statistics


class Hands(Protocol):
    """Runs shards."""

    def forward(self, stop: int, shards: Sequence[int]) -> Iterator[int]:
        """Runs shards forward up to a block; yields the bytes that each wrote."""
        ...

    def backward(self, place: int) -> Iterator[Gathering]:
        """Runs all shards back through a block; yields the sums of each, in their order."""
        ...


@dataclass(frozen=True)
class Threads:
    """Runs shards side by side in this process.

    Attributes:
        shards: The shards.
        step: Is told what samples took that have been through a block.
    """

    shards: Shards
    step: Step

    def forward(self, stop: int, shards: Sequence[int]) -> Iterator[int]:
        """Runs shards forward; see ``Hands``."""
        return in_order(
            lambda shard, step: self.shards.forward(stop, shard, step),
            shards,
            self.step,
            need=max(map(self.shards.need_forward, range(stop)), default=0),
            device=self.shards.context.device,
        )

    def backward(self, place: int) -> Iterator[Gathering]:
        """Runs all shards back through a block; see ``Hands``."""
        return in_order(
            lambda shard, step: self.shards.backward(place, shard, step),
            self.shards.all,
            self.step,
            need=self.shards.need(place),
            device=self.shards.context.device,
        )


@dataclass(frozen=True)
class Elsewhere:
    """Runs shards in other processes, which share the journal.

    Attributes:
        shards: The shards.
        step: Is told what samples took that have been through a block.
        crew: The processes.
    """

    shards: Shards
    step: Step
    crew: Crew

    def forward(self, stop: int, shards: Sequence[int]) -> Iterator[int]:
        """Runs shards forward; see ``Hands``."""
        items = [_item("forward", stop, shard, 0) for shard in shards]
        for at, written in self.crew.each(_Forward(self._told()), items):
            for _ in self.shards.of(shards[at]):
                for place in range(stop):
                    self.step(self.shards.cost_forward(place))
            yield written

    def backward(self, place: int) -> Iterator[Gathering]:
        """Runs all shards back through a block; see ``Hands``.

        Sums come through the journal, so that those of one shard at a time are in memory.
        """
        need = self.shards.need(place)
        items = [_item("backward", place, shard, need) for shard in self.shards.all]
        ended: dict[int, _Told] = {}
        done = 0
        for at, told in self.crew.each(_Backward(self._told()), items):
            ended[at] = told
            for _ in self.shards.of(at):
                self.step(self.shards.cost_backward(place))
            while done in ended:
                yield self._read(place, done, ended.pop(done))
                done += 1

    def _read(self, place: int, shard: int, told: _Told) -> Gathering:
        (tensors,) = self.shards.journal.read("moments", place, shard)
        self.shards.journal.forget("moments", place, [shard])
        sums = MomentSums.of(self.shards.stats.wanted, tensors, told.counts)
        return replace(
            self.shards.gathering(place),
            sums=sums,
            positions=told.positions,
            touched=set(told.touched),
        )

    def _told(self) -> _Sweep:
        objective = self.shards.objective
        names = tuple(str(value.name) for value in objective.outputs)
        return _Sweep(self.shards.stats, objective.kind, names)


def _item(way: str, place: int, shard: int, need: int) -> Item:
    return Item(f"{way} {place}, samples of shard {shard}", (place, shard), need)


@dataclass(frozen=True)
class _Told:
    """What goes with the sums of a shard: see ``Gathering``."""

    counts: dict[str, int]
    positions: float
    touched: tuple[str, ...]


@dataclass(frozen=True)
class _Sweep:
    """What a worker is told of a sweep besides the state."""

    stats: Statistics
    kind: Kind
    outputs: tuple[str, ...]

    def shards(self, state: State) -> Shards:
        """Returns the shards in the process that has taken up the state."""
        if self not in state.prepared:
            samples = state.context.calibration
            assert samples is not None, "a sweep has samples"
            state.prepared[self] = self._shards(state, samples)
        found: Shards = state.prepared[self]
        return found

    def _shards(self, state: State, samples: Calibration) -> Shards:
        by_name: dict[Any, ir.Value] = {
            value.name: value for value in state.model.graph.outputs
        }
        objective = Objective(self.kind, tuple(by_name[name] for name in self.outputs))
        units = list(state.units.values())
        blocks = blocks_of(state.model)
        return Shards(blocks, units, objective, samples, self.stats, state.context)


@dataclass(frozen=True)
class _Forward:
    """Runs one shard forward in a worker."""

    sweep: _Sweep

    def __call__(self, state: State, argument: tuple[int, int]) -> int:
        return self.sweep.shards(state).forward(*argument, _unseen)


@dataclass(frozen=True)
class _Backward:
    """Runs one shard back through a block in a worker."""

    sweep: _Sweep

    def __call__(self, state: State, argument: tuple[int, int]) -> _Told:
        shards = self.sweep.shards(state)
        part = shards.backward(*argument, _unseen)
        shards.journal.write("moments", *argument, [part.sums.tensors()])
        return _Told(part.sums.counts(), part.positions, tuple(sorted(part.touched)))


def _unseen(work: float) -> None:
    """Steps of a worker are not seen; its user is told when a shard has ended."""

"""Forward over the blocks, then backward in reverse: every unit's moments on the way back.

Samples go in shards of a fixed size. Going forward, a shard runs through all blocks; what each
leaves at its boundary is written down. Going back, all shards run through one block before any
runs through the next, so that the sums of no more than one block are in memory. A block's
moments are written when it is done, and never again: a sweep that is killed goes on after the
last block that it has finished. Sums are added up within a shard and then shard by shard, so
that their bits do not depend on who runs which shard.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir

from ...ir import InputError, MachineError
from ...ir.machine_errors import machine_errors
from ...ir.owned_folder import claim, release
from ..engine.pipeline.base import PassContext, State
from ..engine.pipeline.progress import Bar
from .hands import Elsewhere, Hands, Threads
from .shards import Shards

_WHAT = "calibrating"
_LOOK, _LONGEST = 1.0, 600.0  # seconds between looks at another command, and of its silence


@dataclass(frozen=True)
class Sweep:
    """One sweep over the samples.

    Attributes:
        model: The graph.
        shards: Its samples.
        context: Supplies the progress and, if there are any, the workers.
    """

    model: ir.Model
    shards: Shards
    context: PassContext

    def run(self) -> None:
        """Gathers the moments of all blocks that have none yet.

        Raises:
            InputError: The samples overflow the model.
            MachineError: There is no room on disk.
        """
        with self._alone():
            first = self._first()
            if first >= 0:
                self._sweep(first)

    def _sweep(self, first: int) -> None:
        shards = self.shards
        count = sum(len(shards.of(shard)) for shard in shards.all)
        work = sum(map(shards.cost_forward, range(first)))
        work += sum(map(shards.cost_backward, range(first + 1)))
        progress = self.context.progress
        with (
            progress.bar(_WHAT, count * (2 * first + 1), count * work) as bar,
            self._hands(bar) as hands,
        ):
            self._forward(first, hands, bar)
            for place in range(first, -1, -1):
                self._backward(place, hands)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other commands from the journal, or waits for one that has it.

        The journal stays when the command is ended before the sweep is complete. It goes when
        samples do not suit the model, or the disk is full.
        """
        folder, waited = self.shards.journal.folder, 0.0
        with machine_errors(folder, "set MPQC_CACHE to another folder"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            while (lock := claim(folder)) is None:
                if not waited:
                    self.context.progress.say(
                        "another command sweeps the same: waiting for it"
                    )
                waited += _LOOK
                if waited > _LONGEST and time.time() - folder.stat().st_mtime > _LONGEST:
                    raise MachineError(
                        f"{folder} belongs to another command, which does nothing",
                        hint="end that command, or remove the folder",
                    )
                time.sleep(_LOOK)
        try:
            yield
        except (InputError, MachineError):
            release(folder, lock)
            raise
        except BaseException:
            os.close(lock)
            raise
        release(folder, lock)

    @contextmanager
    def _hands(self, bar: Bar) -> Iterator[Hands]:
        """Gives who runs the shards."""
        if self.context.workers is None:
            yield Threads(self.shards, bar.advance)
            return
        with self.context.workers.share(State(self.model, self.context), _WHAT) as crew:
            yield Elsewhere(self.shards, bar.advance, crew)

    def _first(self) -> int:
        """Returns the place of the first block, going back, that is still to be done."""
        shards, say = self.shards, self.context.progress.say
        last = len(shards.blocks) - 1
        place = last
        while place >= 0 and shards.stats.blocks[place].facts(say) is not None:
            place -= 1
        if place in (-1, last) or shards.journal.has("backward", place + 1, shards.all):
            return place
        return last

    def _forward(self, stop: int, hands: Hands, bar: Bar) -> None:
        """Writes down what every block before ``stop`` leaves at its boundary."""
        journal, left = self.shards.journal, []
        for shard in self.shards.all:
            if not all(journal.has("forward", at, [shard]) for at in range(stop)):
                left.append(shard)
                continue
            for _ in self.shards.of(shard):
                for place in range(stop):
                    bar.advance(self.shards.cost_forward(place))
        for at, written in enumerate(hands.forward(stop, left)):
            if not at:
                self._check_room(written * (len(left) - 1))

    def _check_room(self, need: int) -> None:
        folder = self.shards.journal.folder
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if need > free:
            raise MachineError(
                f"what blocks leave for later ones takes {need >> 20} MiB more in"
                f" {folder}, where {free >> 20} are free",
                hint="give fewer or shorter samples, or set MPQC_CACHE to another disk",
            )

    def _backward(self, place: int, hands: Hands) -> None:
        """Runs all shards back through one block and writes its moments."""
        shards, total = self.shards, self.shards.gathering(place)
        for part in hands.backward(place):
            total.merge(part)
        shards.stats.write(place, total.sums, total.positions, total.untouched)
        shards.journal.forget("forward", place, shards.all)
        shards.journal.forget("backward", place + 1, shards.all)

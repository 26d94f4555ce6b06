"""Workers that are other processes in everything but being processes."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpqc.passes.engine.execution.handover import hand_over, taken_up
from mpqc.passes.engine.pipeline.base import Item, State


@dataclass
class PretendWorkers:
    """Runs work on copies of the state, in any order, some of it twice.

    Attributes:
        folder: Where states go.
        seed: Of the order.
        dying: Every how many pieces a worker ends before its result is sent; 0 for never.
        names: What was worked on, in order.
    """

    folder: Path
    seed: int = 0
    dying: int = 0
    names: list[str] = field(default_factory=list)

    @contextmanager
    def share(self, state: State, what: str) -> Iterator[PretendCrew]:
        del what
        self.folder.mkdir(exist_ok=True)
        handed = hand_over(state, self.folder, f"state-{len(self.names)}")
        yield PretendCrew(pickle.dumps(handed), self)


@dataclass
class PretendCrew:
    handed: bytes
    workers: PretendWorkers

    def each(
        self, work: Callable[[State, Any], Any], items: Sequence[Item]
    ) -> Iterator[tuple[int, Any]]:
        sent = pickle.dumps(work)
        assert len(self.handed) + len(sent) < 1 << 20, "weights travel with the state"
        state, names = self._state(), self.workers.names
        todo = list(range(len(items)))
        random.Random(self.workers.seed).shuffle(todo)
        while todo:
            at = todo.pop()
            names.append(items[at].name)
            argument = pickle.loads(pickle.dumps(items[at].argument))
            result = pickle.loads(sent)(state, argument)
            if self.workers.dying and len(names) % self.workers.dying == 0:
                state = self._state()
                todo.insert(0, at)
                continue
            yield at, pickle.loads(pickle.dumps(result))

    def _state(self) -> State:
        return taken_up(pickle.loads(self.handed), "elsewhere")

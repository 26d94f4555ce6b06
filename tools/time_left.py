"""How far a run is, and how long it will still take, by the work of its passes.

What passes are expected to take comes from a model of a plain machine. What the passes before
took in truth says how much quicker or slower this one is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..passes.engine.pipeline.progress import Stage

_TELLING = 5.0  # seconds of work from which on the speed of this machine is known
_MOST = 0.9  # of a pass: what is taken to be done before its last bar begins


class TimeLeft:
    """Listens to passes and bars, and says in words what is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: Stage | None = None
        self._begun = 0.0  # of this pass
        self._since = 0.0  # of the first pass of which anything was expected
        self._before = 0.0  # what was expected of the passes since then that are over
        self._done = self._start = 0.0  # shares of this pass: now, and when its bar began

    def begin(self, stage: Stage) -> None:
        """Is told that a pass begins."""
        now, earlier = self._clock(), self._stage
        goes_on = earlier is not None and earlier.place < stage.place
        if earlier is not None and goes_on and earlier.expected == stage.expected != ():
            self._before += stage.expected[earlier.place]
        else:
            self._since, self._before = now, 0.0
        self._stage, self._begun = stage, now
        self._done = self._start = 0.0

    def begin_bar(self) -> None:
        """Is told that the pass begins to count something; what it did before counts too."""
        earlier = (self._begun - self._since) / self._before if self._before else 1.0
        whole = self._of_this_pass() * earlier
        if whole > 0:
            self._done = min(max(self._done, (self._clock() - self._begun) / whole), _MOST)
        self._start = self._done

    def advance(self, share: float) -> None:
        """Is told how much of what the pass counts is done."""
        self._done = self._start + (1 - self._start) * min(share, 1.0)

    @property
    def place(self) -> str:
        """``pass 5 of 12``; empty outside of a pipeline."""
        return "" if self._stage is None else f"pass {self._stage.place + 1} of {self._count}"

    def text(self) -> str:
        """Returns ``pass 5 of 12, 21 % of all work, about 9 min left``, as far as is known."""
        if self._stage is None or not sum(self._stage.expected):
            return self.place
        at, expected = self._stage.place, self._stage.expected
        rest = expected[at] * (1 - self._done) + sum(expected[at + 1 :])
        share = 1 - rest / sum(expected)
        left = spoken(rest * self._slowness())
        return f"{self.place}, {share:.0%} of all work, about {left} left"

    @property
    def _count(self) -> int:
        return 0 if self._stage is None else self._stage.count

    def _of_this_pass(self) -> float:
        if self._stage is None or not self._stage.expected:
            return 0.0
        return self._stage.expected[self._stage.place]

    def _slowness(self) -> float:
        """Returns how many times the expected seconds this machine takes."""
        expected = self._before + self._done * self._of_this_pass()
        taken = self._clock() - self._since
        return taken / expected if expected > 0 and taken > _TELLING else 1.0


def spoken(seconds: float) -> str:
    """Returns ``40 s``, ``9 min`` or ``2 h 10 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"

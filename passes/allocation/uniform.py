"""One option for all units, the largest that fits: what the other methods are compared to."""

from __future__ import annotations

from collections.abc import Sequence

from .decision import Candidate, Decision, total_bytes
from .method import Asked


def decide(asked: Asked) -> list[Decision]:
    """Gives all units the option of the same place in their lists, the largest that fits."""
    candidates = asked.candidates
    best = _at(candidates, 0)
    for place in range(1, max(len(one.options) for one in candidates)):
        decisions = _at(candidates, place)
        if asked.budget is None or total_bytes(decisions) <= asked.budget:
            best = decisions
    return best


def _at(candidates: Sequence[Candidate], place: int) -> list[Decision]:
    return [Decision.whole(one, min(place, len(one.options) - 1)) for one in candidates]

"""One option for all units, the largest that fits: the baseline of the other methods."""

from __future__ import annotations

from ...ir import Option
from .decision import Candidate, Decision, total_bytes
from .method import Asked


def decide(asked: Asked[object]) -> list[Decision]:
    """Gives all units the same option, the largest that fits; else the next wider one."""
    candidates = asked.candidates
    options = {option for one in candidates for option in one.options}
    best = [Decision.whole(one, 0) for one in candidates]
    for option in sorted(options, key=lambda one: (one.bits, -one.group)):
        decisions = [Decision.whole(one, _place(one, option)) for one in candidates]
        if asked.budget is None or total_bytes(decisions) <= asked.budget:
            best = decisions
    return best


def _place(candidate: Candidate, option: Option) -> int:
    """Returns the place of an option, or of the next wider one."""
    if option in candidate.options:
        return candidate.options.index(option)
    return candidate.place(option.bits)

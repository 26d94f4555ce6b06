"""What can be told of a result before there is one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outlook:
    """What the pass that meets the budget can say from shapes, and from losses if known.

    Attributes:
        least: The fewest stored bits per weight that can be asked for.
        most: As many as the largest options take.
        resident: Bits per weight in memory at what is asked for, about.
        curve: Stored bits per weight with the loss predicted there, ascending; empty while
            losses are unknown.
    """

    least: float
    most: float
    resident: float
    curve: tuple[tuple[float, float], ...] = ()

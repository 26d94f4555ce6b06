"""Two widths, of which the most sensitive units get the larger (APTQ, arXiv 2402.14866).

With a share R of the weights at the first width and the rest at the second, the average is
``4 R + 2 (1 - R)`` for ``bits=[4, 2]`` (its equation 12), and scales and the like on top.
Units are taken whole, by falling score; R counts weights, not units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import UsageError
from . import clusters
from .decision import Decision, total_bytes
from .method import Asked


@dataclass(frozen=True)
class Settings(clusters.Settings):
    """Options of ``ratio``.

    Attributes:
        share: Share of the weights that gets the first width; as much as fits the budget when
            it is left out.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.bits) != 2:
            raise UsageError("allocate-bits{method=ratio} needs two bits, like bits=[4, 2]")
        if self.share is not None and not 0 <= self.share <= 1:
            raise UsageError(f"a share of {self.share} is not between 0 and 1")


def decide(asked: Asked[Settings]) -> list[Decision]:
    """Gives the first width to the top units: those of the share, or as many as fit."""
    candidates, (wide, narrow) = asked.candidates, asked.settings.bits
    ranking = sorted(
        range(len(candidates)), key=lambda at: (-candidates[at].need_score().value, at)
    )

    def with_top(count: int) -> list[Decision]:
        top = set(ranking[:count])
        return [
            Decision.whole(one, one.place(wide if at in top else narrow))
            for at, one in enumerate(candidates)
        ]

    if asked.settings.share is not None:
        sizes = np.array([candidates[at].unit.size for at in ranking], dtype=np.float64)
        return with_top(_nearest(sizes, asked.settings.share))
    assert asked.budget is not None
    count = 0
    while count < len(ranking) and total_bytes(with_top(count + 1)) <= asked.budget:
        count += 1
    return with_top(count)


def _nearest(sizes: np.ndarray, share: float) -> int:
    """Returns how many of the first sizes come nearest to a share of their sum."""
    sums = np.concatenate([[0.0], np.cumsum(sizes)])
    return int(np.abs(sums - share * sums[-1]).argmin())

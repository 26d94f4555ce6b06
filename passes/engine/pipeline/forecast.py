"""Forecasts: what a graph will carry after passes that have not run yet.

A pass that would fail after an hour of calibration can refuse before it (``Pass.preflight``).
What it needs to know of the passes in between is forecast from their options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ....ir import Annotation
from ....ir.analysis.offered import Offer


@dataclass(frozen=True)
class Announcement:
    """What the options of a pass alone tell about the graph after it; one class per fact."""


@dataclass(frozen=True)
class RaisedOpset(Announcement):
    """The graph has at least this opset."""

    version: int


@dataclass(frozen=True)
class Couplings(Announcement):
    """Whether calibration gathers how output channels act together."""

    gathered: bool


@dataclass(frozen=True)
class Headroom(Announcement):
    """INT8 codes leave room for processors that clip sums of two products."""


@dataclass(frozen=True)
class OutlierShares(Announcement):
    """How much of each unit stays in 16 bits.

    Attributes:
        columns: Share of the input channels.
        entries: Share of the single weights.
    """

    columns: float = 0.0
    entries: float = 0.0


@dataclass(frozen=True)
class AskedBits(Announcement):
    """How many stored bits per weight the allocation may take."""

    bits: float


@dataclass(frozen=True)
class Judged(Announcement):
    """How the losses of units are judged.

    Attributes:
        offer: The options that they are judged under.
        by_block: Whether scores belong to whole blocks.
        keeps: Whether units may keep input channels in 16 bits.
    """

    offer: Offer = field(default_factory=Offer)
    by_block: bool = False
    keeps: bool = False


A = TypeVar("A", bound=Announcement)


@dataclass(frozen=True)
class Forecast:
    """What passes that have not run yet will leave behind.

    Attributes:
        notes: Kinds of annotations.
        announcements: The last of each kind.
    """

    notes: frozenset[type[Annotation]] = frozenset()
    announcements: Mapping[type[Announcement], Announcement] = field(default_factory=dict)

    def changed(
        self, writes: Iterable[type[Annotation]] = (), drops: Iterable[type[Annotation]] = ()
    ) -> Forecast:
        """Returns the forecast with some kinds of annotations dropped, then others written."""
        return replace(self, notes=(self.notes - frozenset(drops)) | frozenset(writes))

    def telling(self, announcement: Announcement) -> Forecast:
        """Returns the forecast with one more announcement, the last of its kind."""
        told = {**self.announcements, type(announcement): announcement}
        return replace(self, announcements=told)

    def get(self, kind: type[A]) -> A | None:
        """Returns what was announced last of this kind, or None."""
        found = self.announcements.get(kind)
        return found if isinstance(found, kind) else None

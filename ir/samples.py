"""Samples to run a model on: what frontends make and passes consume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Samples to calibrate on.

    Attributes:
        feeds: One mapping from input name to array for each sample (batch axis 1).
        source: A description of the data, for reports.
        key: Content hash of the samples.
        tokens: Name of the input that carries token ids, if the model reads tokens.
        mask: Name of the input that tells tokens from padding (0), if there is one.
        random: True when the samples are noise, which marks the result.
        held_out: How many samples at the end nobody may fit to; they prove the result.
    """

    feeds: Sequence[Feeds]
    source: str
    key: str
    tokens: str | None = None
    random: bool = False
    held_out: int = 2
    mask: str | None = None

    @property
    def _fitted(self) -> int:
        """How many samples are fitted to: all when there are too few to keep any back."""
        keep = min(max(self.held_out, 0), len(self.feeds) - 1)
        return len(self.feeds) - max(keep, 0)

    @property
    def training(self) -> Sequence[Feeds]:
        """The samples that passes fit to."""
        return self.feeds[: self._fitted]

    @property
    def validation(self) -> Sequence[Feeds]:
        """The samples kept back; the fitted ones when there is only a single sample."""
        return self.kept_back or self.feeds[-1:]

    @property
    def kept_back(self) -> Sequence[Feeds]:
        """The samples that nothing is fitted to, if there are any."""
        return self.feeds[self._fitted :]

    def first(self, count: int) -> Sequence[Feeds]:
        """Returns the first ``count`` samples that passes fit to; 0 stands for all."""
        return self.training[: count or None]

"""A mean of tokens that come in samples, and how far it may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error.

    Attributes:
        mean: Over all tokens.
        error: Standard error of the mean; infinite when a single token tells nothing of it.
        samples: How many samples there were.
        tokens: How many tokens.
    """

    mean: float
    error: float
    samples: int
    tokens: int

    @classmethod
    def of(cls, samples: Sequence[np.ndarray]) -> Estimate:
        """Takes the mean over all tokens of all samples.

        Tokens of a sample resemble each other, so samples count as what is independent:

            error^2 = k / (k - 1) sum_i (n_i (m_i - m))^2 / (sum_i n_i)^2

        for the means m_i of k samples with n_i tokens. A single sample has only its tokens,
        whose error is too small, but better than none.

        Args:
            samples: The values of every token, one vector for each sample.
        """
        every = np.concatenate(samples) if samples else np.empty(0)
        if not every.size:
            return cls(0.0, 0.0, 0, 0)
        parts = (
            samples if len(samples) > 1 else [every[at : at + 1] for at in range(len(every))]
        )
        mean, count = float(every.mean()), len(parts)
        if count < 2:
            return cls(mean, float("inf"), len(samples), every.size)
        deviations = [len(part) * (float(part.mean()) - mean) for part in parts if len(part)]
        spread = float(np.square(deviations).sum()) * count / (count - 1)
        return cls(mean, float(np.sqrt(spread)) / every.size, len(samples), every.size)

    def is_sure(self, share: float, floor: float = 0.0) -> bool:
        """Tells whether the error is at most ``share`` of the mean, or of ``floor``."""
        return self.error <= share * max(abs(self.mean), floor)

"""Which tokens of a sample count. This is decided here and nowhere else.

A mask names the tokens of a sample. Values inside a graph may have their tokens in other
shapes: flattened, or followed by further axes, such as heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ....ir import Feeds


@dataclass(frozen=True, eq=False)
class Padding:
    """Tells the tokens of one sample from its padding.

    Attributes:
        mask: True for every token, false for padding; None where the sample has no padding.
    """

    mask: np.ndarray | None = None

    @classmethod
    def of(cls, feeds: Feeds, mask: str | None) -> Padding:
        """Reads the mask of a sample.

        Args:
            feeds: The sample.
            mask: Name of the input that tells tokens from padding (0), if there is one.
        """
        given = feeds.get(mask) if mask is not None else None
        real = None if given is None else np.asarray(given) != 0
        return cls(None if real is None or real.all() else real)

    def real(self, places: tuple[int, ...]) -> np.ndarray:
        """Returns which places hold tokens, bool, in the shape ``places``.

        All of them do where the mask fits neither all places nor the leading axes.
        """
        if self.mask is not None:
            if self.mask.size == math.prod(places):
                return self.mask.reshape(places)
            rank = self.mask.ndim
            if places[:rank] == self.mask.shape:
                wide = self.mask.reshape(*self.mask.shape, *[1] * (len(places) - rank))
                return np.broadcast_to(wide, places)
        return np.ones(places, dtype=bool)

    def tokens(self, array: np.ndarray) -> np.ndarray:
        """Returns the rows of ``array`` that belong to tokens: tokens x columns."""
        flat = array.reshape(-1, array.shape[-1] if array.ndim else 1)
        if self.mask is None:
            return flat
        return np.asarray(flat[self.real(array.shape[:-1]).reshape(-1)])

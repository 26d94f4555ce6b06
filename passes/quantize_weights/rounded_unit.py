"""What rounding one unit gives, as plain arrays that any process can send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...ir.unit_arrays import UnitArrays
from ..engine.numerics.gptq import Rounded


@dataclass(frozen=True)
class RoundedUnit:
    """A rounded unit.

    Attributes:
        codes: For each class of rows: rows x columns, as ``Rounded`` has them; None where the
            class stays in float16.
        scales: Likewise: rows x groups, float16.
        kept: The input channels that stay in float16, channels x rows; None for none.
        half: The whole unit, rows x columns, float16; None if it has codes.
        loss: The predicted loss of the weights.
        kernel_loss: That of the kernels.
    """

    codes: tuple[np.ndarray | None, ...]
    scales: tuple[np.ndarray | None, ...]
    kept: np.ndarray | None
    half: np.ndarray | None
    loss: float
    kernel_loss: float

    @classmethod
    def of(
        cls,
        made: Sequence[Rounded | None],
        kept: torch.Tensor | None,
        half: torch.Tensor | None,
        loss: float,
        kernel_loss: float,
    ) -> RoundedUnit:
        """Takes tensors of any device.

        Args:
            made: What each class of rows was rounded to; None stands for float16.
            kept: The channels that are kept, rows x channels.
            half: The whole unit, in values of float16.
            loss: The predicted loss of the weights.
            kernel_loss: That of the kernels.
        """
        return cls(
            tuple(None if one is None else one.codes.cpu().numpy() for one in made),
            tuple(None if one is None else one.scales.cpu().numpy() for one in made),
            None if kept is None else kept.T.contiguous().cpu().numpy(),
            None if half is None else half.half().cpu().numpy(),
            loss,
            kernel_loss,
        )

    def put(self, own: UnitArrays) -> None:
        """Keeps codes and scales in the array store."""
        for at, (codes, scales) in enumerate(zip(self.codes, self.scales, strict=True)):
            if codes is not None and scales is not None:
                own.put(codes, "codes", at)
                own.put(scales, "scales", at)
        if self.kept is not None:
            own.put(self.kept, "outliers", "kept")

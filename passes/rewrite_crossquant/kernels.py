"""The quantization kernel of activations: which share of them rounding turns into zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..engine.numerics.activations import block_steps, cross_steps, kernel_share


@dataclass(frozen=True)
class Kernel:
    """Shares of an activation's entries that int8 codes lose.

    Attributes:
        activation: Name of the activation.
        entries: Number of entries counted.
        zero: Share that is zero before rounding.
        per_token: Share that one scale for each token rounds to zero.
        crossquant: The same under scales by token and column, with columns as calibration
            saw them.
        after: The same in the rewritten graph: by token, or by token and by column of the
            tokens at hand where CrossQuant itself is computed.
    """

    activation: str
    entries: int
    zero: float
    per_token: float
    crossquant: float
    after: float


def kernel_of(
    activation: str,
    x: torch.Tensor,
    peaks: torch.Tensor,
    alpha: float,
    bits: int,
    factors: torch.Tensor | None,
) -> Kernel:
    """Counts entries that are rounded to zero.

    Args:
        activation: Its name.
        x: Tokens x columns, before rewriting.
        peaks: Largest magnitude of each column.
        alpha: Of CrossQuant's scales.
        bits: Width of the codes.
        factors: What its columns are divided by; None where CrossQuant itself is computed.
    """
    peaks = torch.maximum(peaks, x.abs().amax(dim=0))
    cross = kernel_share(x, cross_steps(x, alpha, bits, peaks))
    if factors is None:
        after = kernel_share(x, cross_steps(x, alpha, bits))
    else:
        after = kernel_share(x / factors, block_steps(x / factors, 0, bits))
    per_token = kernel_share(x, block_steps(x, 0, bits))
    zero = float((x == 0).float().mean())
    return Kernel(activation, x.numel(), zero, per_token, cross, after)


def kernel_facts(kernels: Iterable[Kernel]) -> dict[str, Any]:
    """Returns the report: every activation, and the shares of all entries."""
    every = list(kernels)
    total = max(sum(one.entries for one in every), 1)
    shares = ("zero", "per_token", "crossquant", "after")
    return {
        "activations": [asdict(one) for one in every],
        **{
            key: sum(getattr(one, key) * one.entries for one in every) / total
            for key in shares
        },
    }

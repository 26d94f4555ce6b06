"""Rounding activations to a few bits: by token, by column, or by both (CrossQuant).

Throughout ``x`` is tokens x columns, ``m = 2^(bits - 1) - 1``. What rounding turns into zero
is called the *quantization kernel* (Liu et al., CrossQuant, arXiv 2410.07505).
"""

from __future__ import annotations

import torch

_SMALLEST = 1e-30  # a step: rows and columns of zeros stay zeros
_DEAD = 1e-5  # of the largest column: columns that calibration hardly saw count as this large


def largest_code(bits: int) -> int:
    """Returns ``m``, the largest magnitude of a symmetric code."""
    return int(2 ** (bits - 1)) - 1


def cross_steps(
    x: torch.Tensor, alpha: float, bits: int = 8, peaks: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the step of every entry, ``t_i^alpha c_j^(1 - alpha) / m`` (eq. 5).

    ``t_i`` is the largest magnitude of a token and ``c_j`` that of a column. As
    ``|x_ij| <= min(t_i, c_j)``, no entry lies more than ``m`` steps from zero.

    Args:
        x: Tokens x columns.
        alpha: 1 is one step for each token, 0 one for each column.
        bits: Width of the codes.
        peaks: ``c_j`` where it is known beforehand.
    """
    size = x.abs()
    tokens = size.amax(dim=1, keepdim=True)
    columns = size.amax(dim=0) if peaks is None else peaks
    steps = tokens**alpha * columns ** (1 - alpha) / largest_code(bits)
    return steps.clamp_min(_SMALLEST)


def block_steps(x: torch.Tensor, block: int, bits: int = 8) -> torch.Tensor:
    """Returns the step of every entry when a token has one for each ``block`` columns.

    Args:
        x: Tokens x columns.
        block: Columns that share a step; 0 stands for all of them.
        bits: Width of the codes.
    """
    tokens, columns = x.shape
    size = block or columns
    padded = torch.nn.functional.pad(x.abs(), (0, -columns % size))
    peaks = padded.reshape(tokens, -1, size).amax(dim=2) / largest_code(bits)
    return peaks.clamp_min(_SMALLEST).repeat_interleave(size, dim=1)[:, :columns]


def tensor_steps(x: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Returns the step of every entry when all of them share one."""
    peak = float(x.abs().max()) if x.numel() else 0.0
    return torch.full_like(x, max(peak / largest_code(bits), _SMALLEST))


def rounded(x: torch.Tensor, steps: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Returns ``x`` rounded to its codes' values."""
    most = largest_code(bits)
    return (x / steps).round_().clamp_(-most, most).mul_(steps)


def kernel_share(x: torch.Tensor, steps: torch.Tensor) -> float:
    """Returns the share of entries that are rounded to zero."""
    return float(((x / steps).round() == 0).float().mean()) if x.numel() else 0.0


def column_factors(
    peaks: torch.Tensor, weights: torch.Tensor, alpha: float, beta: float = 0.0
) -> torch.Tensor:
    """Returns ``c_j^(1 - alpha) w_j^(-beta)``, divided by the geometric mean.

    Dividing the columns of ``x`` by them and rounding by token gives steps that are at most
    CrossQuant's: ``max_j |x_ij| / f_j <= t_i^alpha`` where ``f_j = c_j^(1 - alpha)``.

    Args:
        peaks: Largest magnitude of each column of the activation.
        weights: Largest magnitude of the weights that read each column.
        alpha: Share that is left to the token.
        beta: 0 is CrossQuant, ``1 - alpha`` SmoothQuant.
    """
    powers = (1 - alpha) * _alive(peaks).log() - beta * _alive(weights).log()
    return (powers - powers.mean()).exp()


def _alive(peaks: torch.Tensor) -> torch.Tensor:
    largest = float(peaks.max()) if len(peaks) else 0.0
    return peaks.clamp_min(_DEAD * largest) if largest > 0 else torch.ones_like(peaks)


def powers_of_two(factors: torch.Tensor) -> torch.Tensor:
    """Returns the nearest powers of two, by which floating point multiplies exactly."""
    return factors.log2().round().exp2()

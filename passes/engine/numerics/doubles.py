"""Where float64 is computed: on the device of the numbers, unless that has none."""

from __future__ import annotations

import torch

_WITHOUT = ("mps",)  # Apple's; in torch, any float64 on it is an error


def with_doubles(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor where it can become float64: as it is, or else on the CPU."""
    return tensor.cpu() if tensor.device.type in _WITHOUT else tensor


def total(vector: torch.Tensor) -> float:
    """Returns the sum, counted in float64; for vectors, which cost little to bring over."""
    return float(vector.cpu().sum(dtype=torch.float64))

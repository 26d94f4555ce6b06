"""Pooling over windows and over whole pictures."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..table import lowering
from .arguments import Ints, ints
from .convolution import torch_pads, window_pads

_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@dataclass(frozen=True)
class _Windows:
    """Where the windows of a pooling lie.

    Attributes:
        kernel: Window lengths.
        strides: Steps between windows.
        dilations: Steps inside a window.
        pads: Rows that count as padding: all in front, then all behind.
        overhang: Rows behind those that only make the last window complete.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    overhang: list[int]

    def padded(self, x: Tensor, fill: float) -> Tensor:
        """``x`` with padding and overhang."""
        half = len(self.kernel)
        behind = [a + b for a, b in zip(self.pads[half:], self.overhang, strict=True)]
        return functional.pad(x, torch_pads(self.pads[:half] + behind), value=fill)

    def cut(self, padded: Tensor) -> Tensor:
        """All windows, flattened into a last axis."""
        first = padded.dim() - len(self.kernel)
        for i, (k, s, d) in enumerate(
            zip(self.kernel, self.strides, self.dilations, strict=True)
        ):
            padded = padded.unfold(first + i, (k - 1) * d + 1, s)[..., ::d]
        return padded.flatten(-len(self.kernel))

    def summed(self, padded: Tensor) -> Tensor:
        """The sum in each window."""
        return self.cut(padded).sum(-1)


def _windows(
    x: Tensor,
    kernel_shape: list[int],
    strides: list[int] | None,
    dilations: list[int] | None,
    pads: list[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> _Windows:
    half = len(kernel_shape)
    steps, gaps = strides or [1] * half, dilations or [1] * half
    margin = window_pads(x.shape[2:], kernel_shape, steps, gaps, pads, auto_pad)
    overhang = [0] * half
    if ceil_mode:
        for i, length in enumerate(x.shape[2:]):
            reach = (kernel_shape[i] - 1) * gaps[i] + 1
            total = length + margin[i] + margin[half + i]
            count = -(-(total - reach) // steps[i]) + 1
            if (count - 1) * steps[i] >= length + margin[i]:
                count -= 1
            overhang[i] = max(0, (count - 1) * steps[i] + reach - total)
    return _Windows(kernel_shape, steps, gaps, margin, overhang)


@lowering("", "MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """The largest element of each window, and its position in the flattened input."""
    windows = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if outputs == 1 and x.is_floating_point():
        pool: Any = _MAX_POOL[len(kernel_shape)]
        padded = windows.padded(x, -torch.inf)
        return (pool(padded, kernel_shape, windows.strides, 0, windows.dilations),)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    cut = windows.cut(windows.padded(x, lowest))
    best = cut.argmax(-1, keepdim=True)
    positions = windows.cut(windows.padded(_positions(x, storage_order), 0)).expand(cut.shape)
    values = cut.gather(-1, best).squeeze(-1)
    return (values, positions.gather(-1, best).squeeze(-1))[:outputs]


def _positions(x: Tensor, storage_order: int) -> Tensor:
    """The number of each element, rows first, or columns first if ``storage_order``."""
    spatial = x.shape[2:]
    order = spatial[::-1] if storage_order else spatial
    grid = torch.arange(prod(spatial), device=x.device).reshape(order)
    grid = grid.permute(*reversed(range(grid.dim()))) if storage_order else grid
    image = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[:2])
    return image.reshape(*x.shape[:2], *[1] * len(spatial)) * prod(spatial) + grid


@lowering("", "AveragePool", since=7)
def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The mean of each window; padding counts only if ``count_include_pad``."""
    windows = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        ones = functional.pad(ones, torch_pads(windows.pads), value=1.0)
        ones = functional.pad(ones, torch_pads([0] * len(kernel_shape) + windows.overhang))
    else:
        ones = windows.padded(ones, 0.0)
    return windows.summed(windows.padded(x, 0.0)) / windows.summed(ones)


@lowering("", "LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The p-norm of each window."""
    windows = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return windows.summed(windows.padded(x.abs() ** p, 0.0)) ** (1.0 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


@lowering("", "GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each channel."""
    return x.mean(_spatial(x), keepdim=True)


@lowering("", "GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest element of each channel."""
    return x.amax(_spatial(x), keepdim=True)


@lowering("", "GlobalLpPool", since=2)
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm of each channel."""
    return (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1.0 / p)


@lowering("", "MaxUnpool")
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Zeros, with the elements of ``x`` where max pooling found them."""
    half = len(kernel_shape)
    steps, margin = strides or [1] * half, pads or [0] * 2 * half
    inferred = [
        (x.shape[2 + i] - 1) * steps[i] - margin[i] - margin[half + i] + kernel_shape[i]
        for i in range(half)
    ]
    shape = [*x.shape[:2], *inferred]
    flat = x.new_zeros(prod(shape)).scatter(0, indices.reshape(-1), x.reshape(-1))
    result = flat.reshape(shape)
    if output_shape is None:
        return result
    missing = [want - have for want, have in zip(ints(output_shape), shape, strict=True)]
    return functional.pad(result, torch_pads([0] * len(shape) + missing))

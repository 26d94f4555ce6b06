"""Convolutions, and pictures from columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ..table import lowering
from .arguments import ints

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def same_pads(excess: Sequence[int], auto_pad: str) -> list[int]:
    """Pads that sum to ``excess``; the odd one at the end for SAME_UPPER, else in front."""
    total = [max(0, amount) for amount in excess]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if auto_pad == "SAME_UPPER" else large + small


def window_pads(
    lengths: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[int]:
    """The pads in front and behind that attributes of a windowed operator mean."""
    if auto_pad in ("NOTSET", ""):
        return list(pads) if pads is not None else [0] * 2 * len(lengths)
    if auto_pad == "VALID":
        return [0] * 2 * len(lengths)
    excess = [
        (-(-length // s) - 1) * s + (k - 1) * d + 1 - length
        for length, k, s, d in zip(lengths, kernel, strides, dilations, strict=True)
    ]
    return same_pads(excess, auto_pad)


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX pads (all in front, then all behind) as torch wants them: last axis first."""
    half = len(pads) // 2
    pairs = zip(pads[:half], pads[half:], strict=True)
    return [amount for pair in reversed(list(pairs)) for amount in pair]


@lowering("", "Conv", ignores=("kernel_shape",))
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Convolution over 1 to 3 axes."""
    kernel = weight.shape[2:]
    steps = strides or [1] * len(kernel)
    gaps = dilations or [1] * len(kernel)
    margin = window_pads(x.shape[2:], kernel, steps, gaps, pads, auto_pad)
    half = len(kernel)
    padding = margin[:half]
    if padding != margin[half:]:
        x, padding = functional.pad(x, torch_pads(margin)), [0] * half
    return _CONV[half](x, weight, bias, steps, padding, gaps, group)


@lowering("", "ConvTranspose", ignores=("kernel_shape",))
def convolution_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The gradient of a convolution over 1 to 3 axes."""
    kernel = weight.shape[2:]
    half = len(kernel)
    steps, gaps = strides or [1] * half, dilations or [1] * half
    extra = output_padding or [0] * half
    full = _CONV_TRANSPOSE[half](x, weight, None, stride=steps, dilation=gaps, groups=group)
    lengths = [length + more for length, more in zip(full.shape[2:], extra, strict=True)]
    margin = _transpose_pads(x, lengths, steps, pads, output_shape, auto_pad)
    crop = [-amount for amount in margin]
    crop[half:] = [cut + more for cut, more in zip(crop[half:], extra, strict=True)]
    result = functional.pad(full, torch_pads(crop))
    return result if bias is None else result + bias.reshape(1, -1, *[1] * half)


def _transpose_pads(
    x: Tensor,
    lengths: Sequence[int],
    strides: Sequence[int],
    pads: list[int] | None,
    output_shape: list[int] | None,
    auto_pad: str,
) -> list[int]:
    half = len(lengths)
    if output_shape is None and auto_pad in ("NOTSET", "", "VALID"):
        return pads or [0] * 2 * half
    wanted = output_shape or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    excess = [length - want for length, want in zip(lengths, wanted[-half:], strict=True)]
    if any(amount < 0 for amount in excess):
        return [0] * half + excess
    return same_pads(excess, "SAME_UPPER" if auto_pad == "SAME_UPPER" else "SAME_LOWER")


@lowering("", "CausalConvWithState")
def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over the past only; returns output and the last inputs."""
    reach = weight.shape[2] - 1
    before = x.new_zeros(*x.shape[:2], reach) if past_state is None else past_state
    padded = torch.cat([before, x], dim=2)
    result = functional.conv1d(padded, weight, bias, groups=x.shape[1])
    result = functional.silu(result) if activation in ("silu", "swish") else result
    return result, padded[:, :, padded.shape[2] - reach :]


@lowering("", "Col2Im")
def columns_to_image(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Sum blocks of columns into the image that they were cut from."""
    image, block = ints(image_shape), ints(block_shape)
    half = len(image)
    steps, gaps = strides or [1] * half, dilations or [1] * half
    margin = pads or [0] * 2 * half
    padded = [n + margin[i] + margin[half + i] for i, n in enumerate(image)]
    counts = [
        (n - (b - 1) * d - 1) // s + 1
        for n, b, d, s in zip(padded, block, gaps, steps, strict=True)
    ]
    position = torch.zeros(1, dtype=torch.int64, device=x.device)
    for axis in range(half):
        within = torch.arange(block[axis], device=x.device) * gaps[axis]
        across = torch.arange(counts[axis], device=x.device) * steps[axis]
        places = within[:, None] + across[None, :]
        position = position[..., None, None] * padded[axis] + places
    order = [*range(1, 2 * half, 2), *range(2, 2 * half + 1, 2)]
    index = position.permute(0, *order).reshape(-1)
    values = x.reshape(x.shape[0], -1, len(index))
    blank = values.new_zeros(*values.shape[:2], prod(padded))
    summed = blank.index_add(2, index, values).reshape(*values.shape[:2], *padded)
    return functional.pad(summed, torch_pads([-amount for amount in margin]))

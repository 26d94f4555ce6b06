"""Shapes: reading them, changing them, moving axes and whole stretches."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ..table import lowering
from .arguments import Ints, Number, axes_of, ints, number


@lowering("", "Identity")
def identity(x: Tensor) -> Tensor:
    """``x``."""
    return x


@lowering("", "Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The shape of ``x`` from axis ``start`` up to ``end``."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64, device=x.device)


@lowering("", "Size")
def size(x: Tensor) -> Tensor:
    """How many elements ``x`` has."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@lowering("", "Reshape", since=5)
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """``x`` in ``shape``, where 0 keeps an axis unless ``allowzero``."""
    target = ints(shape)
    if not allowzero:
        target = [x.shape[i] if length == 0 else length for i, length in enumerate(target)]
    if -1 in target and x.numel() == 0:
        # torch cannot guess a length from nothing; the rule still divides the sizes.
        known = prod(length for length in target if length != -1)
        target = [0 if length == -1 and known else length for length in target]
    return x.reshape(target)


@lowering("", "Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """``x`` as a matrix: the axes before ``axis``, and the rest."""
    if axis < 0:
        axis += x.dim()
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@lowering("", "Transpose")
@lowering("com.microsoft", "Transpose")
def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    """``x`` with its axes in the order ``perm``, reversed by default."""
    return x.permute(perm if perm is not None else list(range(x.dim()))[::-1])


@lowering("", "Squeeze")
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """``x`` without ``axes`` of length 1, without all of them by default."""
    return x.squeeze() if axes is None else x.squeeze(axes_of(x.dim(), axes))


@lowering("", "Unsqueeze")
def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """``x`` with new axes of length 1 at positions ``axes`` of the result."""
    rank = x.dim() + len(ints(axes))
    for axis in sorted(axes_of(rank, axes)):
        x = x.unsqueeze(axis)
    return x


@lowering("", "Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """``x`` broadcast against ``shape``."""
    target = ints(shape)
    missing = max(0, x.dim() - len(target))
    target = [1] * missing + target
    own = [1] * (len(target) - x.dim()) + list(x.shape)
    return x.expand(
        [mine if want == 1 else want for mine, want in zip(own, target, strict=True)]
    )


@lowering("", "Tile", since=6)
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """``x`` repeated along each axis."""
    return x.repeat(ints(repeats))


@lowering("", "Concat", since=4)
def concat(*tensors: Tensor, axis: int) -> Tensor:
    """``tensors`` one behind the other along ``axis``."""
    return torch.cat(tensors, dim=axis)


@lowering("", "Split", since=2)
def split(
    x: Tensor,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """``x`` cut along ``axis`` into pieces of lengths ``split``, equal by default."""
    if split is not None:
        return torch.split(x, ints(split), dim=axis)
    length = -(-x.shape[axis] // (num_outputs or outputs))
    cuts = [min(i * length, x.shape[axis]) for i in range(outputs + 1)]
    return tuple(x.narrow(axis, begin, end - begin) for begin, end in pairwise(cuts))


@lowering("", "Slice")
def slice_(
    x: Tensor,
    starts: Ints,
    ends: Ints,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> Tensor:
    """``x[start:end:step]`` along ``axes``."""
    begins, stops = ints(starts), ints(ends)
    where = axes_of(x.dim(), axes)[: len(begins)]
    strides = [1] * len(begins) if steps is None else ints(steps)
    for axis, begin, stop, step in zip(where, begins, stops, strides, strict=True):
        x = _take_slice(x, axis, slice(begin, stop, step))
    return x


def _take_slice(x: Tensor, axis: int, piece: slice) -> Tensor:
    taken = range(*piece.indices(x.shape[axis]))
    if taken.step == 1:
        return x.narrow(axis, taken.start if len(taken) else 0, len(taken))
    positions = torch.tensor(list(taken), dtype=torch.int64, device=x.device)
    return x.index_select(axis, positions)


@lowering("", "Pad", since=2)
def pad(
    x: Tensor,
    pads: Ints,
    constant_value: Tensor | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    """``x`` longer (or shorter, if negative) at both ends of ``axes``."""
    where = axes_of(x.dim(), axes)
    amounts = ints(pads)
    pairs = zip(where, amounts[: len(where)], amounts[len(where) :], strict=True)
    fill: Number = value if constant_value is None else constant_value
    for axis, before, after in pairs:
        if before or after:
            x = _pad_axis(x, axis, before, after, mode, fill)
    return x


def _pad_axis(
    x: Tensor, axis: int, before: int, after: int, mode: str, fill: Number
) -> Tensor:
    if mode == "constant":
        widths = [0, 0] * (x.dim() - 1 - axis) + [before, after]
        return _pad_constant(x, widths, number(fill))
    length = x.shape[axis]
    positions = torch.arange(-before, length + after, device=x.device)
    if mode == "edge":
        positions = positions.clamp(0, length - 1)
    elif mode == "wrap":
        positions = positions.remainder(length)
    else:
        period = max(2 * (length - 1), 1)
        positions = positions.remainder(period)
        positions = torch.minimum(positions, period - positions)
    return x.index_select(axis, positions)


def _pad_constant(x: Tensor, widths: list[int], fill: float) -> Tensor:
    if x.dtype is torch.bool:
        return functional.pad(x.to(torch.uint8), widths, value=fill).to(torch.bool)
    return functional.pad(x, widths, value=fill)


@lowering("", "CenterCropPad")
def center_crop_pad(x: Tensor, shape: Tensor, *, axes: list[int] | None = None) -> Tensor:
    """``x`` cut or zero padded evenly at both ends until ``axes`` have ``shape``."""
    for axis, length in zip(axes_of(x.dim(), axes), ints(shape), strict=True):
        excess = x.shape[axis] - length
        if excess > 0:
            x = x.narrow(axis, excess // 2, length)
        elif excess < 0:
            x = _pad_axis(x, axis, -excess // 2, -excess - (-excess // 2), "constant", 0.0)
    return x


@lowering("", "DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels moved into blocks of pixels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        blocks = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // b**2, h * b, w * b)


@lowering("", "SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels moved into channels."""
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).reshape(n, c * b**2, h // b, w // b)


@lowering("", "ReverseSequence")
def reverse_sequence(
    x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first ``sequence_lens[b]`` steps of each sequence in reverse order."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)
    lengths = sequence_lens.to(torch.int64)[:, None]
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device)[:, None]
    return moved[rows, source].movedim((0, 1), (batch_axis, time_axis))

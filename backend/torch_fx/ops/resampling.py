"""Resizing by interpolation and sampling at given places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor

import torch
from torch import Tensor
from torch.nn import functional

from ..table import lowering
from .arguments import axes_of, floats, ints


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Attributes:
        length: Its length before.
        result: Its length after.
        scale: The ratio asked for, of which ``result`` is rounded.
        roi: The part to keep, as shares of the length.
    """

    length: int
    result: int
    scale: float
    roi: tuple[float, float]


def _places(axis: _Axis, mode: str) -> Tensor:
    """Where, in the old axis, each element of the new one comes from."""
    step = torch.arange(axis.result, dtype=torch.float64)
    width = axis.scale * axis.length
    if mode == "align_corners":
        return step * 0 if width == 1 else step * (axis.length - 1) / (width - 1)
    if mode == "asymmetric":
        return step / axis.scale
    if mode == "tf_crop_and_resize":
        begin, end = (share * (axis.length - 1) for share in axis.roi)
        middle = (end - begin) / 2
        slope = 0.0 if width == 1 else (end - begin) / (width - 1)
        return begin + (middle if width == 1 else 0.0) + step * slope
    if mode == "pytorch_half_pixel" and width == 1:
        return step * 0 - 0.5
    centered = (step + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        return centered + axis.length / 2 * (1 - axis.result / width)
    if mode == "tf_half_pixel_for_nn":
        return (step + 0.5) / axis.scale
    return centered


_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _cubic(distance: Tensor, a: float) -> Tensor:
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _weights(
    axis: _Axis, places: Tensor, mode: str, a: float, antialias: bool, exclude: bool
) -> Tensor:
    """The matrix (new length by old length) that interpolates along one axis."""
    shrink = min(axis.scale, 1.0) if antialias else 1.0
    reach = (2 if mode == "cubic" else 1) / shrink
    first = floor(float(places.min()) - reach)
    last = ceil(float(places.max()) + reach)
    taps = torch.arange(first, last + 1, dtype=torch.float64)
    distance = (taps[None, :] - places[:, None]) * shrink
    kernel = _cubic(distance, a) if mode == "cubic" else (1 - distance.abs()).clamp(min=0)
    if exclude:
        kernel = kernel * ((taps >= 0) & (taps < axis.length))
    if exclude or antialias:
        kernel = kernel / kernel.sum(1, keepdim=True)
    matrix = torch.zeros(axis.result, axis.length, dtype=torch.float64)
    columns = taps.clamp(0, axis.length - 1).to(torch.int64)
    return matrix.index_add(1, columns, kernel)


def _axes_to_resize(
    x: Tensor,
    axes: list[int],
    scales: list[float] | None,
    sizes: list[int] | None,
    roi: list[float],
    policy: str,
) -> dict[int, _Axis]:
    half = len(axes)
    lengths = [x.shape[axis] for axis in axes]
    if sizes:
        scales = [size / length for size, length in zip(sizes, lengths, strict=True)]
        if policy != "stretch":
            common = min(scales) if policy == "not_larger" else max(scales)
            scales = [common] * half
            sizes = [int(common * length + 0.5) for length in lengths]
    factors = scales or [1.0] * half
    results = sizes or [floor(n * s) for n, s in zip(lengths, factors, strict=True)]
    parts = zip(roi[:half], roi[half:], strict=True) if roi else [(0.0, 1.0)] * half
    return {
        axis: _Axis(length, result, scale, part)
        for axis, length, result, scale, part in zip(
            axes, lengths, results, factors, parts, strict=True
        )
    }


@lowering("", "Resize", since=11)
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """``x`` resampled along ``axes`` to ``sizes``, or by ``scales``."""
    plan = _axes_to_resize(
        x,
        axes_of(x.dim(), axes),
        None if scales is None else floats(scales),
        None if sizes is None else ints(sizes),
        [] if roi is None else floats(roi),
        keep_aspect_ratio_policy,
    )
    cropping = coordinate_transformation_mode == "tf_crop_and_resize"
    result = x
    for index, axis in plan.items():
        if axis.length == axis.result and axis.scale == 1.0 and not cropping:
            continue
        places = _places(axis, coordinate_transformation_mode)
        if mode == "nearest":
            chosen = _ROUNDINGS[nearest_mode](places).clamp(0, axis.length - 1)
            result = result.index_select(index, chosen.to(x.device, torch.int64))
        else:
            matrix = _weights(
                axis, places, mode, cubic_coeff_a, bool(antialias), bool(exclude_outside)
            )
            result = _along(result, index, matrix)
        if cropping:
            outside = ((places < 0) | (places > axis.length - 1)).to(x.device)
            shape = [-1] + [1] * (x.dim() - 1 - index)
            result = result.masked_fill(outside.reshape(shape), extrapolation_value)
    return result


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply ``matrix`` into one axis of ``x``; integers are rounded and kept in range."""
    dtype = x.dtype if x.is_floating_point() else torch.float64
    weights = matrix.to(x.device, dtype)
    moved: Tensor = (x.to(dtype).movedim(axis, -1) @ weights.T).movedim(-1, axis)
    if x.is_floating_point():
        return moved
    limits = torch.iinfo(x.dtype)
    return moved.trunc().clamp(limits.min, limits.max).to(x.dtype)


@lowering("", "Resize", since=10)
@lowering("", "Upsample", since=7)
def upsample(x: Tensor, scales: Tensor | Sequence[float], *, mode: str = "nearest") -> Tensor:
    """``x`` resampled by ``scales``, the first elements staying where they are."""
    return resize(
        x,
        None,
        torch.as_tensor(scales),
        coordinate_transformation_mode="asymmetric",
        mode=mode,
        nearest_mode="floor",
    )


_SAMPLING = {"linear": "bilinear", "cubic": "bicubic"}


@lowering("", "GridSample")
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """``x`` read at the places in ``grid``, which run from -1 to 1."""
    return functional.grid_sample(
        x, grid, _SAMPLING.get(mode, mode), padding_mode, align_corners=bool(align_corners)
    )


@lowering("", "AffineGrid")
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """The places at which ``grid_sample`` must read to apply ``theta``."""
    return functional.affine_grid(theta, ints(size), align_corners=bool(align_corners))

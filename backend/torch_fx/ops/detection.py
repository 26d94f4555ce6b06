"""Boxes of detectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..table import lowering
from .arguments import Number, number


@lowering("", "NonMaxSuppression")
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Number = 0,
    iou_threshold: Number = 0.0,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Rows (image, class, box): the best boxes that do not overlap a better one."""
    limit = int(number(max_output_boxes_per_class))
    least = -torch.inf if score_threshold is None else number(score_threshold)
    rows = []
    for image in range(scores.shape[0]):
        corners = _corners(boxes[image], bool(center_point_box))
        # Boxes are taken one by one, which the host does sooner than any device.
        overlaps = (_overlaps(corners) > number(iou_threshold)).cpu()
        for kind in range(scores.shape[1]):
            chosen = _suppressed(overlaps, scores[image, kind].cpu(), least, limit)
            rows += [[image, kind, box] for box in chosen]
    return torch.tensor(rows, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _suppressed(overlaps: Tensor, scores: Tensor, least: float, limit: int) -> list[int]:
    chosen: list[int] = []
    for box in scores.argsort(descending=True, stable=True).tolist():
        if len(chosen) >= limit or scores[box] <= least:
            break
        if not bool(overlaps[box, chosen].any()):
            chosen.append(box)
    return chosen


def _corners(boxes: Tensor, centered: bool) -> Tensor:
    """Boxes as low corner, high corner."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if centered:
        return torch.cat([first - second / 2, first + second / 2], dim=1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)


def _overlaps(corners: Tensor) -> Tensor:
    """Intersection over union of every two boxes."""
    low, high = corners[:, :2], corners[:, 2:]
    sides = torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)
    shared = sides.clamp(min=0).prod(-1)
    areas = (high - low).prod(-1)
    union = areas[:, None] + areas - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(shared))


@lowering("", "RoiAlign", since=16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """A picture of fixed size for each region, by bilinear interpolation."""
    offset = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    pieces = []
    for roi, image in zip(rois * spatial_scale - offset, batch_indices.tolist(), strict=True):
        left, top, right, bottom = roi.tolist()
        width, height = right - left, bottom - top
        if not offset:
            width, height = max(width, 1.0), max(height, 1.0)
        rows = _samples(top, height, output_height, sampling_ratio)
        columns = _samples(left, width, output_width, sampling_ratio)
        taps = _bilinear(x[image], rows.flatten(), columns.flatten(), mode == "max")
        split = taps.reshape(x.shape[1], *rows.shape, *columns.shape)
        pieces.append(split.amax((2, 4)) if mode == "max" else split.mean((2, 4)))
    return (
        torch.stack(pieces)
        if pieces
        else x.new_zeros(0, x.shape[1], output_height, output_width)
    )


@lowering("", "RoiAlign", since=10)
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoiAlign with pixels at whole coordinates."""
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


def _samples(start: float, extent: float, bins: int, ratio: int) -> Tensor:
    """Sampling coordinates: bins by samples in a bin."""
    size = extent / bins
    count = ratio or max(1, -int(-size // 1))
    within = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return start + (torch.arange(bins, dtype=torch.float64)[:, None] + within) * size


def _bilinear(image: Tensor, rows: Tensor, columns: Tensor, largest: bool) -> Tensor:
    """``image`` (channels, height, width) read at every row and column coordinate."""
    height, width = image.shape[1:]
    down, across = _taps(rows, height).to(image), _taps(columns, width).to(image)
    if not largest:
        return torch.einsum("rh,chw,kw->crk", down, image, across)
    # The operator takes the largest weighted corner, not the largest interpolated value.
    corners = torch.einsum("rh,kw,chw->crkhw", down, across, image)
    return corners.flatten(3).amax(-1)


def _taps(places: Tensor, length: int) -> Tensor:
    """Interpolation weights: places by pixels; nothing more than a pixel outside."""
    inside = (places >= -1) & (places <= length)
    clamped = places.clamp(0, length - 1)
    low = clamped.floor().to(torch.int64)
    high = (low + 1).clamp(max=length - 1)
    share = (clamped - low)[:, None]
    one_hot = functional.one_hot
    weights = one_hot(low, length) * (1 - share) + one_hot(high, length) * share
    return weights * inside[:, None]

"""Writing elements by position."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ..table import lowering
from .indexing import counted_from_front

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@lowering("", "Scatter", "ScatterElements")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """``x`` with ``updates`` written (or combined) at ``indices`` along ``axis``."""
    positions = counted_from_front(indices, x.shape[axis])
    return _write(x, axis, positions, updates, reduction)


@lowering("", "ScatterND")
def scatter_nd(
    x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    """``x`` with slices of ``updates`` written at the tuples in ``indices``."""
    depth = indices.shape[-1]
    outer, inner = x.shape[:depth], x.shape[depth:]
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i, part in enumerate(indices.unbind(-1)):
        row = row * x.shape[i] + counted_from_front(part, x.shape[i])
    flat = x.reshape(prod(outer), prod(inner))
    rows = row.reshape(-1, 1).expand(-1, flat.shape[1])
    return _write(flat, 0, rows, updates.reshape(rows.shape), reduction).reshape(x.shape)


def _write(x: Tensor, axis: int, positions: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, positions, updates)
    return x.scatter_reduce(axis, positions, updates, _REDUCTIONS[reduction])


@lowering("", "TensorScatter")
def tensor_scatter(
    past_cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    mode: str = "linear",
    axis: int = -2,
) -> Tensor:
    """``past_cache`` with ``update`` written from ``write_indices[batch]`` on."""
    axis %= past_cache.dim()
    steps = torch.arange(update.shape[axis], device=update.device)
    starts = torch.zeros(update.shape[:1], dtype=torch.int64, device=update.device)
    if write_indices is not None:
        starts = write_indices.to(torch.int64)
    positions = starts[:, None] + steps
    if mode == "circular":
        positions = positions.remainder(past_cache.shape[axis])
    view = [1] * update.dim()
    view[0], view[axis] = positions.shape
    return past_cache.scatter(axis, positions.reshape(view).expand(update.shape), update)

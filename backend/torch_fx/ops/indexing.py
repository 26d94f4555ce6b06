"""Reading elements by position, and making positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..dtypes import onnx_dtype, torch_dtype, widened
from ..table import lowering
from .arguments import Number, number


def counted_from_front(indices: Tensor, length: int) -> Tensor:
    """``indices`` as int64, negative ones counted from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + length, indices)


@lowering("", "Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The slices of ``x`` along ``axis`` at ``indices``."""
    axis %= x.dim()
    positions = counted_from_front(indices, x.shape[axis])
    taken = x.index_select(axis, positions.reshape(-1))
    return taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@lowering("", "GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The elements of ``x`` whose position along ``axis`` is replaced by ``indices``."""
    axis %= x.dim()
    positions = counted_from_front(indices, x.shape[axis])
    for other in range(x.dim()):
        if other != axis:
            x = x.narrow(other, 0, positions.shape[other])
    return x.gather(axis, positions)


@lowering("", "GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The slices of ``x`` at the tuples in the last axis of ``indices``."""
    batch = x.shape[:batch_dims]
    prefix = []
    for axis, length in enumerate(batch):
        along = [1] * (indices.dim() - 1)
        along[axis] = length
        prefix.append(torch.arange(length, device=x.device).reshape(along))
    tuples = [
        counted_from_front(part, x.shape[batch_dims + i])
        for i, part in enumerate(indices.unbind(-1))
    ]
    return x[tuple(prefix + tuples)] if prefix or tuples else x


@lowering("", "NonZero")
def non_zero(x: Tensor) -> Tensor:
    """The positions of non-zero elements, one column each."""
    return x.reshape(1, -1).nonzero().T[1:] if x.dim() == 0 else x.nonzero().T


@lowering("", "Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices along ``axis`` (of ``x`` flattened by default) where ``condition``."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


@lowering("", "OneHot")
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """``values[1]`` at ``indices`` along a new ``axis`` of ``depth``, else ``values[0]``."""
    length = int(number(depth))
    steps = torch.arange(length, device=indices.device)
    positions = counted_from_front(indices, length)
    chosen = positions.unsqueeze(-1) == steps
    wide = widened(values)
    return torch.where(chosen, wide[1], wide[0]).to(values.dtype).movedim(-1, axis)


@lowering("", "Trilu")
def triangle(x: Tensor, k: Number = 0, *, upper: int = 1) -> Tensor:
    """The upper (or lower) triangle of each matrix from diagonal ``k`` on."""
    diagonal = int(number(k))
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@lowering("", "Range")
def arange(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """``start, start + delta, ...`` before ``limit``."""
    begin, end, step = start.item(), limit.item(), delta.item()
    if (end - begin) / step <= 0:
        return start.new_empty(0)
    return torch.arange(begin, end, step, dtype=start.dtype, device=start.device)


@lowering("", "ConstantOfShape")
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """A tensor of ``shape`` filled with ``value``, by default a float 0."""
    lengths = [int(length) for length in shape.reshape(-1).tolist()]
    if value is None:
        return torch.zeros(lengths, dtype=torch.float32, device=shape.device)
    return value.reshape(()).expand(lengths).clone()


@lowering("", "EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on diagonal ``k`` of a matrix shaped like ``x``."""
    code = onnx_dtype(x.dtype) if dtype is None else dtype
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return (columns[None, :] - rows[:, None] == k).to(torch_dtype(code))


@lowering("", "TopK")
def top_k(
    x: Tensor, k: Number, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The ``k`` largest (or smallest) elements along ``axis`` and their positions."""
    count = int(number(k))
    ordered = widened(x).sort(dim=axis, descending=bool(largest), stable=True)
    values = ordered.values.narrow(axis, 0, count).to(x.dtype)
    return values, ordered.indices.narrow(axis, 0, count)


@lowering("", "ArgMax")
def arg_max(
    x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """The position of the largest element along ``axis``."""
    if not select_last_index:
        return torch.argmax(x, dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), dim=axis, keepdim=bool(keepdims))


@lowering("", "ArgMin")
def arg_min(
    x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """The position of the smallest element along ``axis``."""
    if not select_last_index:
        return torch.argmin(x, dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmin(x.flip(axis), dim=axis, keepdim=bool(keepdims))


@lowering("", "Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first largest element along ``axis``, else 0."""
    chosen = functional.one_hot(torch.argmax(x, dim=axis), x.shape[axis])
    return chosen.movedim(-1, axis).to(x.dtype)


@lowering("", "Hardmax")
def hardmax_of_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """Hardmax over all axes from ``axis`` on."""
    return hardmax(x.flatten(axis % x.dim()), axis=-1).reshape(x.shape)


@lowering("", "Unique")
def unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1, outputs: int
) -> tuple[Tensor, ...]:
    """The different slices of ``x``, their first positions, the way back and their counts."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    values, back, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    positions = torch.arange(back.numel(), device=x.device)
    first = torch.full_like(counts, back.numel())
    first = first.scatter_reduce(0, back, positions, "amin")
    if not sorted:
        order = first.argsort()
        values, first, counts = values.index_select(axis, order), first[order], counts[order]
        back = order.argsort()[back]
    return (values, first, back, counts)[:outputs]

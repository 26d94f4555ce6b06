"""Reductions over axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ..dtypes import widened
from ..table import lowering
from .arguments import Ints, Number, axes_of, ints, number

_Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = prod(x.shape[axis] for axis in axes)
    return torch.div(x.sum(axes, keepdim=keep), count, rounding_mode="trunc")


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amax(axes, keepdim=keep) if x.numel() else _empty(x, axes, keep, _lowest(x))


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amin(axes, keepdim=keep) if x.numel() else _empty(x, axes, keep, _highest(x))


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.abs().sum(axes, keepdim=keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    squares = _sum_square(x, axes, keep)
    return squares.sqrt() if x.is_floating_point() else squares.double().sqrt()


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x * x).sum(axes, keepdim=keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.logsumexp(axes, keepdim=keep)


def _empty(x: Tensor, axes: list[int], keep: bool, fill: float) -> Tensor:
    reduced = x.sum(axes, keepdim=keep)
    return torch.full_like(reduced, fill, dtype=x.dtype)


def _lowest(x: Tensor) -> float:
    if x.dtype is torch.bool:
        return 0
    return -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min


def _highest(x: Tensor) -> float:
    if x.dtype is torch.bool:
        return 1
    return torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).max


def _reduce(
    function: _Reduce, x: Tensor, axes: Ints | None, keepdims: int, noop: int
) -> Tensor:
    """Reduce with ``function``; no axes mean all of them, or none of them if ``noop``."""
    chosen = [] if axes is None else ints(axes)
    if not chosen and noop:
        return function(x.unsqueeze(0), [0], False).to(x.dtype)
    over = axes_of(x.dim(), chosen or None)
    if not over:
        return function(x.unsqueeze(0), [0], False).to(x.dtype)
    return function(widened(x), over, bool(keepdims)).to(x.dtype)


@lowering("", "ReduceSum")
def reduce_sum(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum over ``axes``."""
    return _reduce(_sum, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceMean")
def reduce_mean(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The mean over ``axes``."""
    return _reduce(_mean, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceMax")
def reduce_max(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The largest element over ``axes``."""
    return _reduce(_max, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceMin")
def reduce_min(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The smallest element over ``axes``."""
    return _reduce(_min, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceProd")
def reduce_prod(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The product over ``axes``."""
    return _reduce(_prod, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceL1")
def reduce_l1(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum of absolute values over ``axes``."""
    return _reduce(_l1, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceL2")
def reduce_l2(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The Euclidean norm over ``axes``."""
    return _reduce(_l2, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceSumSquare")
def reduce_sum_square(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum of squares over ``axes``."""
    return _reduce(_sum_square, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceLogSum")
def reduce_log_sum(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The logarithm of the sum over ``axes``."""
    return _reduce(_log_sum, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "ReduceLogSumExp")
def reduce_log_sum_exp(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The logarithm of the sum of exponentials over ``axes``."""
    return _reduce(_log_sum_exp, x, axes, keepdims, noop_with_empty_axes)


@lowering("", "CumSum")
def cumulative_sum(x: Tensor, axis: Number, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """The running sum along ``axis``."""
    return _running(torch.cumsum, 0, x, int(number(axis)), bool(exclusive), bool(reverse))


@lowering("", "CumProd")
def cumulative_product(
    x: Tensor, axis: Number, *, exclusive: int = 0, reverse: int = 0
) -> Tensor:
    """The running product along ``axis``."""
    return _running(torch.cumprod, 1, x, int(number(axis)), bool(exclusive), bool(reverse))


def _running(
    function: Callable[..., Tensor],
    neutral: int,
    x: Tensor,
    axis: int,
    exclusive: bool,
    reverse: bool,
) -> Tensor:
    ordered = x.flip(axis) if reverse else x
    if exclusive:
        first = torch.full_like(ordered.narrow(axis, 0, 1), neutral)
        ordered = torch.cat([first, ordered.narrow(axis, 0, x.shape[axis] - 1)], axis)
    result = function(ordered, dim=axis, dtype=x.dtype)
    return result.flip(axis) if reverse else result

"""Arithmetic and activations, one element at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..dtypes import widened
from ..table import MICROSOFT, lowering, plain
from .arguments import Number, number

_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
for _name, _function in _PLAIN.items():
    plain("", _name, _function)


def _unsigned_too(function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Apply ``function``, through int64 where torch lacks the unsigned kernel."""
    wide = widened(a)
    return function(a, b) if wide is a else function(wide, widened(b)).to(a.dtype)


@lowering("", "Add", since=7)
def add(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``."""
    return _unsigned_too(torch.add, a, b)


@lowering("", "Sub", since=7)
def subtract(a: Tensor, b: Tensor) -> Tensor:
    """``a - b``."""
    return _unsigned_too(torch.sub, a, b)


@lowering("", "Mul", since=7)
def multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a * b``."""
    return _unsigned_too(torch.mul, a, b)


@lowering("", "Div", since=7)
def divide(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``; integers are cut toward zero."""
    if a.is_floating_point() or a.is_complex():
        return a / b
    return torch.div(widened(a), widened(b), rounding_mode="trunc").to(a.dtype)


@lowering("", "Mod")
def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder, with the sign of ``b``, or of ``a`` if ``fmod``."""
    return _unsigned_too(torch.fmod if fmod else torch.remainder, a, b)


@lowering("", "Pow", since=7)
def power(a: Tensor, b: Tensor) -> Tensor:
    """``a ** b`` in the type of ``a``."""
    return torch.pow(widened(a), widened(b)).to(a.dtype)


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    return _unsigned_too(torch.maximum, a, b)


def _minimum(a: Tensor, b: Tensor) -> Tensor:
    return _unsigned_too(torch.minimum, a, b)


@lowering("", "Max", since=6)
def maximum(*tensors: Tensor) -> Tensor:
    """The largest of ``tensors``."""
    return reduce(_maximum, tensors)


@lowering("", "Min", since=6)
def minimum(*tensors: Tensor) -> Tensor:
    """The smallest of ``tensors``."""
    return reduce(_minimum, tensors)


@lowering("", "Sum", since=6)
def total(*tensors: Tensor) -> Tensor:
    """The sum of ``tensors``."""
    return reduce(torch.add, tensors)


@lowering("", "Mean", since=6)
def mean(*tensors: Tensor) -> Tensor:
    """The mean of ``tensors``."""
    return reduce(torch.add, tensors) / len(tensors)


@lowering("", "Clip", since=6)
def clip(x: Tensor, min: Number | None = None, max: Number | None = None) -> Tensor:
    """``x`` kept between ``min`` and ``max``; ``max`` wins where they cross."""
    wide = widened(x)
    if min is not None:
        wide = torch.maximum(wide, torch.as_tensor(min, device=x.device).to(wide.dtype))
    if max is not None:
        wide = torch.minimum(wide, torch.as_tensor(max, device=x.device).to(wide.dtype))
    return wide.to(x.dtype)


@lowering("", "Relu")
def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return functional.relu(x)


@lowering("", "LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """``x``, times ``alpha`` where negative."""
    return torch.where(x < 0, x * alpha, x)


@lowering("", "PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``x``, times ``slope`` where negative."""
    wide = widened(x)
    return torch.where(wide < 0, wide * widened(slope), wide).to(x.dtype)


@lowering("", "Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha (exp(x) - 1)`` where negative."""
    return functional.elu(x, alpha)


@lowering("", "Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha (exp(x / alpha) - 1)`` where negative."""
    return functional.celu(x, alpha)


@lowering("", "Selu")
def selu(
    x: Tensor, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323
) -> Tensor:
    """``gamma * elu(x, alpha)``."""
    return gamma * functional.elu(x, alpha)


@lowering("", "HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha x + beta`` kept between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


@lowering("", "ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` where it exceeds ``alpha``, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@lowering("", "Shrink")
def shrink(x: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    """``x`` moved toward zero by ``bias``, and 0 within ``lambd`` of zero."""
    zero = torch.zeros_like(x)
    below, above = (x + bias).to(x.dtype), (x - bias).to(x.dtype)
    return torch.where(x < -lambd, below, torch.where(x > lambd, above, zero))


@lowering("", "Swish")
def swish(x: Tensor, *, alpha: float | None = None) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return functional.silu(x) if alpha is None else x * torch.sigmoid(alpha * x)


@lowering(MICROSOFT, "QuickGelu")
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(alpha * x)


@lowering("", "SwiGLU")
def swiglu(a: Tensor, b: Tensor, *, alpha: float | None = None) -> Tensor:
    """``a sigmoid(alpha a) b``."""
    return swish(a, alpha=alpha) * b


@lowering("", "Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """``x`` times the normal distribution function of ``x``."""
    return functional.gelu(x, approximate=approximate)


@lowering("", "Dropout", since=7, ignores=("seed",))
def dropout(
    x: Tensor,
    ratio: Number = 0.5,
    training_mode: Tensor | None = None,
    *,
    outputs: int,
) -> tuple[Tensor, ...]:
    """``x`` itself; noise only if ``training_mode``."""
    kept = torch.ones_like(x, dtype=torch.bool)
    if training_mode is not None and bool(number(training_mode)) and number(ratio) > 0:
        share = number(ratio)
        kept = torch.rand_like(x, dtype=torch.float32) >= share
        x = torch.where(kept, x / (1 - share), torch.zeros_like(x))
    return (x, kept)[:outputs]


@lowering("", "Det")
def determinant(x: Tensor) -> Tensor:
    """The determinant of each matrix."""
    result: Tensor = torch.linalg.det(x)
    return result


@lowering(MICROSOFT, "BiasGelu")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)``."""
    return functional.gelu(x + bias)


@lowering(MICROSOFT, "Gelu")
def exact_gelu(x: Tensor) -> Tensor:
    """``gelu(x)``."""
    return functional.gelu(x)


@lowering(MICROSOFT, "FastGelu")
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``gelu(x + bias)`` by tanh."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@lowering(MICROSOFT, "BiasSplitGelu")
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The left half of ``x + bias`` times the gelu of its right half."""
    left, right = (x + bias).chunk(2, dim=-1)
    return left * functional.gelu(right)


@lowering(MICROSOFT, "BiasAdd")
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """``x + bias + skip``."""
    return x + bias + skip


@lowering(MICROSOFT, "Inverse")
def inverse(x: Tensor) -> Tensor:
    """The inverse of each matrix."""
    result: Tensor = torch.linalg.inv(x)
    return result

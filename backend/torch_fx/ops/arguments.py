"""Reading arguments that are attributes in old opsets and tensors in new ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Ints = Sequence[int] | Tensor
Number = float | Tensor


def ints(values: Ints) -> list[int]:
    """``values`` as Python integers."""
    if isinstance(values, Tensor):
        return [int(value) for value in values.reshape(-1).tolist()]
    return [int(value) for value in values]


def floats(values: Sequence[float] | Tensor) -> list[float]:
    """``values`` as Python floats."""
    if isinstance(values, Tensor):
        return [float(value) for value in values.reshape(-1).tolist()]
    return [float(value) for value in values]


def number(value: Number) -> float:
    """``value`` as a Python number; a tensor must hold exactly one."""
    return value.item() if isinstance(value, Tensor) else value


def axes_of(rank: int, axes: Ints | None) -> list[int]:
    """``axes`` counted from the front; all axes for None."""
    if axes is None:
        return list(range(rank))
    return [axis % rank for axis in ints(axes)]

"""Room in the codes of a unit for what processors without VNNI add up in 16 bits."""

from __future__ import annotations

import numpy as np

from ...ir import ArrayStore, QuantSpec, Unit
from ...ir.unit_arrays import UnitArrays
from ..engine.numerics.pair_sums import overflowing_rows, without_overflow


def make_room(unit: Unit, spec: QuantSpec, arrays: ArrayStore) -> int:
    """Rounds the INT8 rows of ``unit`` that integer kernels could clip anew.

    Returns:
        How many rows that were.
    """
    own, changed = UnitArrays(unit.name, arrays), 0
    order = _kernel_order(unit)
    for one in own.row_classes(spec.options, spec.counts):
        if one.option.group != unit.shape[1]:
            continue
        codes, scales = own.get("codes", one.index)[:, order], own.get("scales", one.index)
        changed += int(overflowing_rows(codes).sum())
        steps = scales[:, 0].astype(np.float16)
        weight = codes * steps.astype(np.float32)[:, None]
        codes, steps = without_overflow(weight, codes, steps)
        own.put(np.ascontiguousarray(codes[:, np.argsort(order)]), "codes", one.index)
        own.put(steps[:, None], "scales", one.index)
    return changed


def _kernel_order(unit: Unit) -> np.ndarray:
    """Returns the columns in the order in which kernels sum them up.

    Convolutions store the taps of a channel together; their kernels take all channels of one
    tap, then of the next.
    """
    columns = unit.shape[1]
    if unit.uses[0].kind != "conv":
        return np.arange(columns)
    channels = unit.tensor.shape.numpy()[1 - unit.row_axis]
    return np.arange(columns).reshape(channels, -1).T.ravel()

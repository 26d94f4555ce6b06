"""The scales of one rounded unit as parameters; its codes stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from ...ir import ArrayStore, QuantSpec, Unit, need_note
from ...ir.unit_arrays import RowClass, UnitArrays
from ..engine.execution.devices import CPU
from ..engine.numerics.borrowing import borrowed
from ..engine.numerics.expanded import expand, group_sums
from ..engine.numerics.scales import storable
from ..engine.statistics.quadratic import outlier_columns
from ..engine.statistics.simulated import simulate


@dataclass(frozen=True)
class _TunedClass:
    """The rows of a unit that share an option.

    Attributes:
        codes: Rows x columns.
        group: Columns that share a scale.
        places: Int64: where the rows are in the matrix.
        scales: Float32, rows x groups, as they were rounded.
        change: Float32, rows x groups: the tuned parameter.
        reach: Relative change of a scale for a change of one. The more levels, the more a
            scale that is a little off moves the outer ones, so it halves with every bit.
    """

    codes: torch.Tensor
    group: int
    places: torch.Tensor
    scales: torch.Tensor
    change: torch.Tensor
    reach: float

    def tuned(self) -> torch.Tensor:
        """Returns the scales as they are now; a scale of zero stays zero."""
        return self.scales * (1 + self.reach * self.change)

    def put(self, matrix: torch.Tensor) -> None:
        """Writes the rows into rows x columns of the unit."""
        expand(self.codes, self.tuned().detach(), self.group, self.places, matrix)

    def gradient(self, matrix: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of ``change``, given that of the unit's matrix."""
        by_scale = group_sums(matrix, self.codes, self.group, self.places)
        return by_scale * self.scales * self.reach


class _Stored(torch.autograd.Function):
    """The matrix that codes and scales stand for; its derivative needs no copy of it."""

    @staticmethod
    def forward(ctx: Any, unit: TunedScales, *changes: torch.Tensor) -> torch.Tensor:
        del changes  # autograd must see them; the row classes hold them
        ctx.unit = unit
        return unit.matrix()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.unit.gradients(gradients[0])


class TunedScales:
    """A unit whose weight is a differentiable function of its scales.

    Attributes:
        unit: The unit.
    """

    def __init__(self, unit: Unit, arrays: ArrayStore, device: str = CPU) -> None:
        self.unit, self._store, self._device = unit, arrays, device
        self._spec = need_note(unit.notes, QuantSpec)
        self._arrays = UnitArrays(unit.name, arrays)
        classes = self._arrays.row_classes(self._spec.options, self._spec.counts)
        self._classes = [self._read(one) for one in classes]
        self._kept = _kept(unit, arrays, device)
        self._dtype = to_torch_dtype(unit.tensor.dtype)

    def _read(self, one: RowClass) -> _TunedClass:
        codes = borrowed(self._arrays.get("codes", one.index)).to(self._device)
        scales = torch.from_numpy(np.array(self._arrays.get("scales", one.index)))
        return _TunedClass(
            codes,
            one.option.group,
            torch.from_numpy(one.rows.astype(np.int64)).to(self._device),
            scales.float().to(self._device),
            torch.zeros(scales.shape, requires_grad=True, device=self._device),
            reach=2.0 ** (2 - one.option.bits),
        )

    def parameters(self) -> list[torch.Tensor]:
        """Returns the tuned parameters."""
        return [one.change for one in self._classes]

    def matrix(self) -> torch.Tensor:
        """Returns rows x columns."""
        made = torch.empty(self.unit.shape, device=self._device)
        for one in self._classes:
            one.put(made)
        if self._kept is not None:
            columns, values = self._kept
            made[:, columns] = values
        return made

    def gradients(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """Returns the gradient of each parameter, given that of the matrix."""
        return [one.gradient(matrix) for one in self._classes]

    def weight(self) -> torch.Tensor:
        """Returns the weight in its own layout and type, a function of the parameters."""
        matrix: torch.Tensor = _Stored.apply(self, *self.parameters())  # type: ignore[no-untyped-call]
        dims, axis = list(self.unit.tensor.shape.numpy()), self.unit.row_axis
        moved = [dims[axis], *dims[:axis], *dims[axis + 1 :]]
        return matrix.reshape(moved).movedim(0, axis).to(self._dtype)

    def round_scales(self) -> None:
        """Rounds the scales to their stored precision."""
        with torch.no_grad():
            for one in self._classes:
                one.scales.copy_(storable(one.tuned()))
                one.change.zero_()

    def store(self) -> None:
        """Writes the settled scales, as float16; the weight is what they now stand for."""
        for at, one in enumerate(self._classes):
            self._arrays.put(one.scales.half().cpu().numpy(), "scales", at)
        simulate(self.unit, self._store)


def _kept(
    unit: Unit, arrays: ArrayStore, device: str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns input channels that stay in 16 bits, and rows x channels of their values."""
    columns = outlier_columns(unit, arrays)
    if not len(columns):
        return None
    values = np.array(UnitArrays(unit.name, arrays).get("outliers", "kept"), dtype=np.float32)
    places = torch.from_numpy(columns.astype(np.int64)).to(device)
    return places, torch.from_numpy(values.T).to(device)

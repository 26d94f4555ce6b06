"""How large the values of a graph are for one sample, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from statistics import median

import onnx_ir as ir

from ....ir import Calibration, Feeds, Unit, Use, find_units

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Extent:
    """The sizes of one sample.

    Attributes:
        dims: Sizes of the dimensions that the graph leaves open, by their names.
        positions: Places of an activation whose shape nobody knows.
        widths: What products read and make without a shape, with its columns.
        usual: Columns of any other value without a shape.
    """

    dims: Mapping[str, int]
    positions: int
    widths: Mapping[ir.Value, int]
    usual: int

    @classmethod
    def of(cls, model: ir.Model, calibration: Calibration | None) -> Extent:
        """Returns the extent of the first sample; of a single place where there are none."""
        widths = _widths(model)
        usual = int(median(widths.values())) if widths else 1
        if calibration is None or not calibration.feeds:
            return cls({}, 1, widths, usual)
        feeds = calibration.feeds[0]
        positions = max((prod(array.shape[:2]) for array in feeds.values()), default=1)
        tokens = feeds.get(calibration.tokens or "")
        positions = positions if tokens is None else tokens.size
        return cls(_dims(model, feeds), positions, widths, usual)

    def entries(self, value: ir.Value) -> int:
        """Returns how many numbers a value holds, as far as can be told."""
        if value.shape is None:
            return self.positions * self.widths.get(value, self.usual)
        dims = [
            one if isinstance(one, int) else self.dims.get(str(one.value))
            for one in value.shape
        ]
        known = prod(one for one in dims if one is not None)
        # Batch and length are open as a rule; together they make the places.
        return known * (self.positions if None in dims else 1)

    def _size(self, dim: int | ir.SymbolicDim) -> int | None:
        return dim if isinstance(dim, int) else self.dims.get(str(dim.value))

    def places(self, use: Use) -> float:
        """Returns how many times a sample multiplies by the weight, or looks a row up."""
        if use.kind == "lookup":
            shaped = use.activation.shape is not None
            return self.entries(use.activation) if shaped else self.positions
        if use.kind == "product":
            width = _last(use.activation)
            return self.entries(use.activation) / width if width else self.positions
        made = use.node.outputs[0]
        return self.entries(made) / max(_channels(made), 1)

    def multiply_adds(self, units: Iterable[Unit]) -> float:
        """Returns how many multiply-adds of weights one sample takes."""
        return float(
            sum(
                unit.size * self.places(use)
                for unit in units
                for use in unit.uses
                if use.kind != "lookup"
            )
        )


def _widths(model: ir.Model) -> dict[ir.Value, int]:
    found = {}
    for unit in find_units(model):
        for use in unit.uses:
            if use.kind == "product":
                found[use.activation] = unit.shape[1]
            if not use.takes_floats:
                found[use.node.outputs[0]] = unit.shape[use.kind == "lookup"]
    return found


def _dims(model: ir.Model, feeds: Feeds) -> dict[str, int]:
    found = {}
    for value in model.graph.inputs:
        if value.shape is None or value.name not in feeds:
            continue
        for dim, size in zip(value.shape, feeds[str(value.name)].shape, strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                found[str(dim.value)] = int(size)
    return found


def _last(value: ir.Value) -> int:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else 0


def _channels(value: ir.Value) -> int:
    second = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
    return second if isinstance(second, int) else 1

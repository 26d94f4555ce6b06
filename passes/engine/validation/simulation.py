"""Checks a pass that rounds: nothing changes but weights, and each is what its codes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....ir import (
    HALF,
    ArrayStore,
    BitAllocation,
    Miscompiled,
    QuantSpec,
    Unit,
    note_of,
    quantizable,
)
from ..execution.parallel import for_each
from ..pipeline.progress import Progress
from .stored import Inconsistent, is_rounded, stored_matrix
from .structure import Structure

_ASTRAY = 0.25  # cosine below which a row is no rounding of what it was; 2 bits leave 0.9
_COLUMNS = 256  # that are enough to tell two rows apart
_BYTES = 12  # of memory for each weight of a unit that is checked
_NEGLIGIBLE = 1e-4  # rows this much smaller than the largest may round to nothing


@dataclass(frozen=True)
class Simulated:
    """A graph before it was rounded.

    Attributes:
        structure: Everything but the weights of units.
        weights: Of units that may be rounded, by name.
        codes: That must stay, by name.
    """

    structure: Structure
    weights: Mapping[str, ir.TensorProtocol]
    codes: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: ir.Model, arrays: ArrayStore, *, same_codes: bool) -> Simulated:
        """Looks at a model that a pass is about to round.

        Args:
            model: The graph.
            arrays: The codes of units that are rounded already.
            same_codes: Whether they have to stay; else such units may be rounded anew.
        """
        units, codes = quantizable(model), {}
        if same_codes:
            codes = {k: codes for k, codes in arrays.in_memory().items() if "/codes/" in k}
        weights = {
            unit.name: unit.tensor for unit in units if not (same_codes and is_rounded(unit))
        }
        return cls(Structure.of(model, {unit.name for unit in units}), weights, codes)

    def check(
        self, pass_: str, model: ir.Model, arrays: ArrayStore, progress: Progress
    ) -> int:
        """Compares with the rounded graph; returns how many units were checked.

        Args:
            pass_: Name of the pass that rounded.
            model: The graph now.
            arrays: What the codes are now.
            progress: Where to show progress.

        Raises:
            Miscompiled: More than weights changed, or a weight is not what its codes say.
        """
        units = {unit.name: unit for unit in quantizable(model)}
        changed = self.structure.change_to(Structure.of(model, units.keys()))
        if changed:
            raise Miscompiled(f"{pass_} may only change weights: {changed}")
        gone = {name for name in self.weights if name not in units}
        if gone:
            raise Miscompiled(f"{pass_}: unit {min(gone)!r} can no longer be quantized")
        faults = for_each(
            lambda unit: self._fault(unit, arrays),
            list(units.values()),
            progress,
            f"validating {pass_}",
            need=lambda unit: _BYTES * unit.size,
        )
        for name, why in zip(units, faults, strict=True):
            if why:
                raise Miscompiled(f"{pass_}: unit {name!r}: {why}")
        return len(units)

    def _fault(self, unit: Unit, arrays: ArrayStore) -> str:
        before, allocated = self.weights.get(unit.name), note_of(unit.notes, BitAllocation)
        if not is_rounded(unit):
            half = allocated is not None and allocated.options == (HALF,)
            return "" if before is None else _unrounded_fault(unit, before, half=half)
        try:
            expected = stored_matrix(unit, arrays)
        except Inconsistent as error:
            return str(error)
        dtype = unit.tensor.dtype.numpy()
        wanted = expected.astype(dtype, copy=False).astype(np.float32, copy=False)
        found = _first_unequal(wanted, unit.matrix())
        if found:
            return f"its weight {found}, by its codes"
        spec = note_of(unit.notes, QuantSpec)
        if spec is not None and allocated is not None:
            given = (spec.options, spec.counts)
            if given != (allocated.options, allocated.counts):
                return f"its rows are stored as {given}, not as allocate-bits decided"
        if before is not None:
            return _astray(unit, before, expected)
        return self._changed_codes(unit, arrays)

    def _changed_codes(self, unit: Unit, arrays: ArrayStore) -> str:
        for name, codes in self.codes.items():
            if name.startswith(f"{unit.name}/codes/"):
                now = arrays.get(name)
                if now is not codes and not np.array_equal(now, codes):
                    return f"its codes {name!r} changed"
        return ""


def _unrounded_fault(unit: Unit, before: ir.TensorProtocol, *, half: bool) -> str:
    """Returns how a weight without codes differs from what it was, or from its halves."""
    now = unit.tensor
    if now is before:
        return ""
    kept = before.numpy()
    if half:
        most = np.finfo(np.float16).max
        kept = np.clip(kept.astype(np.float32), -most, most).astype(np.float16)
    found = _first_unequal(kept.astype(np.float32), now.numpy().astype(np.float32))
    return f"it has no codes, yet its weight {found}" if found else ""


def _first_unequal(expected: np.ndarray, actual: np.ndarray) -> str:
    if expected.shape != actual.shape:
        return f"has shape {list(actual.shape)}, expected {list(expected.shape)}"
    wrong = expected != actual
    if not wrong.any():
        return ""
    place = tuple(int(at) for at in np.argwhere(wrong)[0])
    return f"at {list(place)} is {actual[place]:.6g}, expected {expected[place]:.6g}"


def _astray(unit: Unit, before: ir.TensorProtocol, stored: np.ndarray) -> str:
    """Returns which row points elsewhere than before it was rounded, as swapped rows do."""
    step = max(1, stored.shape[1] // _COLUMNS)
    exact = np.moveaxis(before.numpy(), unit.row_axis, 0).reshape(stored.shape)
    exact, stored = exact[:, ::step].astype(np.float32), stored[:, ::step]
    sizes, made = np.linalg.norm(exact, axis=1), np.linalg.norm(stored, axis=1)
    dots = np.einsum("rc,rc->r", exact, stored)
    astray = (dots < _ASTRAY * sizes * made) & (sizes > _NEGLIGIBLE * sizes.max(initial=0.0))
    if not astray.any():
        return ""
    row = int(astray.argmax())
    cosine = float(dots[row] / (sizes[row] * made[row]))
    return f"row {row} is no rounding of what it was (their cosine is {cosine:.2f})"

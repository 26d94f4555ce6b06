"""The pass ``annotate-sensitivity``: what every row loses under every option."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..ir import (
    Annotation,
    Calibrated,
    Capabilities,
    LeftInFloat,
    Option,
    Sensitivity,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    need_note,
    quantizable,
)
from ..ir.text_form import did_you_mean
from .base import Pass, PassContext
from .measured_sensitivity import measured_totals
from .moved import moves_key
from .numerics.rounding import round_rows
from .offered import DEFAULT_GROUPS, obstacle, offered_options
from .parallel import for_each
from .quadratic import Quadratic

METRICS = ("fisher", "kl")


@dataclass(frozen=True)
class AnnotateSensitivity(Pass):
    """Predict the divergence of storing each row of each unit with each option.

    Every unit is rounded with GPTQ at every width that the target has a kernel for, and the
    error of each row goes through the quadratic form of ``calibrate``:
    ``dKL_n(option) = 1/2 g_n d^T H d``.

    With ``metric=kl`` the prediction of a whole unit is replaced by the divergence measured in
    the model when this unit alone is stored so; its rows keep their shares.

    Attributes:
        metric: ``fisher`` or ``kl``.
        groups: Group sizes to offer, where the target's kernels take them.
        samples: Samples that ``kl`` measures on.
        units: Measure only this many units, evenly spread; 0 measures all.
    """

    name: ClassVar[str] = "annotate-sensitivity"
    reads: ClassVar[tuple[type[Annotation], ...]] = (TensorStats, Calibrated)
    writes: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity,)
    metric: str = "fisher"
    groups: tuple[int, ...] = DEFAULT_GROUPS
    samples: int = 2
    units: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            hint = did_you_mean(self.metric, METRICS)
            raise UsageError(f"annotate-sensitivity has no metric {self.metric!r}", hint=hint)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit that the target has an option for."""
        units = [unit for unit in quantizable(model) if self._offered(unit, context)]
        path = self._file(model, context)
        if not _is_complete(path, units):
            self._compute(model, units, path, context)
        context.arrays.mount(path)
        for unit in units:
            options = tuple(
                str(option) for option in self._options(unit, context.capabilities)
            )
            loss = context.arrays.get(f"{unit.name}/loss")
            total = tuple(float(one) for one in loss.sum(axis=0, dtype=np.float64))
            annotate(unit.anchor, Sensitivity(unit.name, self.metric, options, total))
        return True

    def _offered(self, unit: Unit, context: PassContext) -> bool:
        """Tells whether the target can store the unit; says why not in a note."""
        if self._options(unit, context.capabilities):
            return True
        rows, columns = unit.shape
        none = f"{context.capabilities.target} has no kernel for {rows} x {columns}"
        why = obstacle(unit) or none
        annotate(unit.anchor, LeftInFloat(unit.name, why))
        return False

    def _options(self, unit: Unit, table: Capabilities) -> list[Option]:
        return offered_options(unit, table, self.groups)

    def _file(self, model: ir.Model, context: PassContext) -> Path:
        stats = need_note(model, Calibrated).stats
        table = context.capabilities
        text = f"mpqc.sensitivity/1 {stats} {self} {table.kernels} {table.lookup_bits}"
        text += moves_key(quantizable(model), context.arrays)
        text += f" {table.convolution_bits}"
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        folder = context.cache or context.scratch
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{key}.safetensors"

    def _compute(
        self, model: ir.Model, units: Sequence[Unit], path: Path, context: PassContext
    ) -> None:
        def losses(unit: Unit) -> np.ndarray:
            return _losses(unit, self._options(unit, context.capabilities), context)

        found = for_each(losses, units, context.progress, "trying every width")
        table = {unit.name: loss for unit, loss in zip(units, found, strict=True)}
        if self.metric == "kl":
            chosen = _spread(units, self.units)
            options = {u.name: self._options(u, context.capabilities) for u in chosen}
            measured = measured_totals(model, chosen, options, self.samples, context)
            for name, totals in measured.items():
                table[name] *= totals / np.maximum(table[name].sum(axis=0), 1e-30)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file({f"{name}/loss": loss for name, loss in table.items()}, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _spread(units: Sequence[Unit], count: int) -> list[Unit]:
    """Returns ``count`` units evenly spread over the model; all when ``count`` is 0."""
    if not count or count >= len(units):
        return list(units)
    return [units[round(at)] for at in np.linspace(0, len(units) - 1, count)]


def _is_complete(path: Path, units: Sequence[Unit]) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return {f"{unit.name}/loss" for unit in units} <= set(file.keys())
    except (SafetensorError, OSError):
        return False


def _losses(unit: Unit, options: Sequence[Option], context: PassContext) -> np.ndarray:
    """Returns rows x options: the predicted divergence of each row under each option."""
    quadratic = Quadratic.of(unit, context.arrays)
    weight, factor = torch.from_numpy(unit.matrix()), quadratic.factor()
    columns = []
    for option in options:
        rounded = round_rows(weight, option.bits, option.group, factor)
        columns.append(quadratic.loss(weight, rounded.dequantize(option.group)))
    return torch.stack(columns, dim=1).numpy()

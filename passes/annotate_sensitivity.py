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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..ir import (
    Annotation,
    Calibrated,
    Capabilities,
    LeftInFloat,
    Option,
    Score,
    Sensitivity,
    TensorStats,
    Unit,
    annotate,
    need_note,
    quantizable,
)
from .machinery.base import Pass, PassContext
from .rewriting.moved import moves_key
from .sensitivity.metric import Asked, check_metric, metric
from .sensitivity.offered import DEFAULT_GROUPS, obstacle, offered_options


@dataclass(frozen=True)
class AnnotateSensitivity(Pass):
    """Predict the divergence of storing each row of each unit with each option.

    Every unit is rounded with GPTQ at every width that the target has a kernel for, and the
    error of each row goes through the quadratic form of ``calibrate``:
    ``dKL_n(option) = 1/2 g_n d^T H d``.

    With ``metric=kl`` the prediction of a whole unit is replaced by the divergence measured in
    the model when this unit alone is stored so; its rows keep their shares.

    Beside the losses every unit gets a score, one number for all options; of these metrics it
    is what one of its weights loses under the smallest option.

    Attributes:
        metric: ``fisher`` or ``kl``.
        groups: Group sizes to offer, where the target's kernels take them.
        bits: Widths to offer; all that the target has kernels for when it is left out. A unit
            that has none of them is offered all.
        samples: Samples that ``kl`` measures on.
        units: Measure only this many units, evenly spread; 0 measures all.
    """

    name: ClassVar[str] = "annotate-sensitivity"
    reads: ClassVar[tuple[type[Annotation], ...]] = (TensorStats, Calibrated)
    writes: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity, Score)
    metric: str = "fisher"
    groups: tuple[int, ...] = DEFAULT_GROUPS
    bits: tuple[int, ...] = ()
    samples: int = 2
    units: int = 0

    def __post_init__(self) -> None:
        check_metric(self.metric)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit that the target has an option for."""
        units = [unit for unit in quantizable(model) if self._is_offered(unit, context)]
        path = self._file(model, context)
        if not _is_complete(path, units):
            self._compute(model, units, path, context)
        context.arrays.mount(path)
        for unit in units:
            self._annotate(unit, context)
        return True

    def options(self, unit: Unit, table: Capabilities) -> list[Option]:
        """Returns the options that ``unit`` is judged under, by growing size."""
        offered = offered_options(unit, table, self.groups)
        return [one for one in offered if one.bits in self.bits] or offered

    def _annotate(self, unit: Unit, context: PassContext) -> None:
        options = tuple(str(one) for one in self.options(unit, context.capabilities))
        loss = context.arrays.get(f"{unit.name}/loss")
        total = tuple(float(one) for one in loss.sum(axis=0, dtype=np.float64))
        annotate(unit.anchor, Sensitivity(unit.name, self.metric, options, total))
        score, block = context.arrays.get(f"{unit.name}/score")
        annotate(unit.anchor, Score(unit.name, self.metric, float(score), int(block)))

    def _is_offered(self, unit: Unit, context: PassContext) -> bool:
        """Tells whether the target can store the unit; says why not in a note."""
        if self.options(unit, context.capabilities):
            return True
        rows, columns = unit.shape
        none = f"{context.capabilities.target} has no kernel for {rows} x {columns}"
        why = obstacle(unit) or none
        annotate(unit.anchor, LeftInFloat(unit.name, why))
        return False

    def _file(self, model: ir.Model, context: PassContext) -> Path:
        stats = need_note(model, Calibrated).stats
        table = context.capabilities
        text = f"mpqc.sensitivity/2 {stats} {self} {table.kernels} {table.lookup_bits}"
        text += moves_key(quantizable(model), context.arrays)
        text += f" {table.convolution_bits}"
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        folder = context.cache or context.scratch
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{key}.safetensors"

    def _compute(
        self, model: ir.Model, units: Sequence[Unit], path: Path, context: PassContext
    ) -> None:
        options = {unit.name: self.options(unit, context.capabilities) for unit in units}
        judged = metric(self.metric)(Asked(model, units, options, self, context))
        arrays = {f"{name}/loss": one.loss for name, one in judged.items()}
        for name, one in judged.items():
            arrays[f"{name}/score"] = np.array([one.score, one.block], dtype=np.float64)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file(arrays, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _is_complete(path: Path, units: Sequence[Unit]) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return {f"{unit.name}/loss" for unit in units} <= set(file.keys())
    except (SafetensorError, OSError):
        return False

"""Compiling on a device: seconds of each pass, and the most of its memory that is taken."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ....ir import temporary_folder
from ....passes.engine.pipeline.progress import Progress
from ...api import compile as compile_model
from ...export import export_folder
from ..shapes import SHAPES, write_shape
from .kit import ORIGINAL, Kit, calibration_in

_SHAPE_BUDGET = 4.0
_SHAPE_TEXT = {"samples": 16, "sequence_length": 256, "random_calibration": True}


def measure_compile(kit: Kit, device: str, progress: Progress) -> dict[str, Any]:
    """Compiles the model of a kit as it was prepared, with nothing in its cache.

    Args:
        kit: What was prepared.
        device: As ``mpqc compile --device`` takes it.
        progress: Where to show progress.

    Returns:
        See ``_compiled``.
    """
    facts = kit.facts
    return _compiled(
        kit.folder / ORIGINAL,
        device,
        progress,
        budget=facts["budget"],
        preset=facts["preset"],
        **calibration_in(kit),
    )


def measure_shape(name: str, device: str, progress: Progress) -> dict[str, Any]:
    """Makes a model of a shape, exports and compiles it, on noise.

    Args:
        name: One of ``SHAPES``.
        device: As ``mpqc compile --device`` takes it.
        progress: Where to show progress.

    Returns:
        See ``_compiled``.
    """
    with temporary_folder() as folder:
        named = write_shape(SHAPES[name], folder / name)
        exported = export_folder(named, folder / "exported", progress=progress).output
        return _compiled(exported, device, progress, budget=_SHAPE_BUDGET, **_SHAPE_TEXT)


def _compiled(model: Path, device: str, progress: Progress, **options: Any) -> dict[str, Any]:
    """Compiles a model.

    Returns:
        ``weights``, ``wall`` and ``passes`` (seconds, also by pass), ``memory`` (bytes of the
        device at most, as torch counts them; None for the CPU), ``predicted`` and
        ``measured`` loss, and the ``device``.
    """
    counted = device.startswith("cuda")
    if counted:
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    with temporary_folder() as folder:
        made = compile_model(
            model,
            device=device,
            output=folder / "made",
            cache=folder / "cache",
            progress=progress,
            **options,
        )
    return {
        "device": torch.cuda.get_device_name(device) if counted else device,
        "weights": made.weights,
        "wall": round(time.perf_counter() - begun, 1),
        "passes": dict(made.seconds),
        "memory": torch.cuda.max_memory_allocated(device) if counted else None,
        "bits": made.got,
        "predicted": made.predicted,
        "measured": made.measured,
    }

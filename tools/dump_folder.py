"""What a folder of dumps holds beside the dumps, so that a run can go on anywhere.

``original.onnx`` is the model as it was read, ``calibration.safetensors`` the samples and
``companions/`` the tokenizer and settings files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from safetensors import SafetensorError, safe_open

from ..frontend.model_source import Source
from ..ir import Calibration, InputError, machine_errors, write_model
from ..ir.sealed_file import read_seal, write_sealed
from .companions import carry_companions

_ORIGINAL = "original.onnx"
_SAMPLES = "calibration.safetensors"
_COMPANIONS = "companions"
_SHARED = "data"


def prepare_dumps(
    folder: Path, model: ir.Model, source: Source, calibration: Calibration | None
) -> None:
    """Writes what every dump of a run needs. The weights are shared with the dumps."""
    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_model(model, folder / _ORIGINAL, shared=folder / _SHARED)
        carry_companions(source, folder / _COMPANIONS)
        if calibration is not None:
            _save_calibration(calibration, folder / _SAMPLES)


def original_in(folder: Path) -> Source | None:
    """Returns the original model of a folder of dumps, if it is there."""
    path = (folder / _ORIGINAL).absolute()
    if not path.is_file():
        return None
    return Source(path, path, (path.parent / _COMPANIONS,))


def calibration_in(folder: Path) -> Calibration | None:
    """Returns the samples of a folder of dumps, if they are there.

    Raises:
        InputError: The file with them is damaged.
    """
    path = folder / _SAMPLES
    if not path.is_file():
        return None
    facts = dict(read_seal(path).facts)
    try:
        with safe_open(path, framework="numpy") as file:
            feeds: list[dict[str, Any]] = [{} for _ in range(int(facts.pop("count")))]
            for name in sorted(file.keys()):
                at, _, key = name.partition("/")
                feeds[int(at)][key] = file.get_tensor(name)
        return Calibration(feeds=feeds, **facts)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _save_calibration(calibration: Calibration, path: Path) -> None:
    facts = {
        "count": len(calibration.feeds),
        "source": calibration.source,
        "key": calibration.key,
        "tokens": calibration.tokens,
        "random": calibration.random,
        "held_out": calibration.held_out,
        "mask": calibration.mask,
    }
    arrays = {
        f"{at}/{name}": array
        for at, feed in enumerate(calibration.feeds)
        for name, array in feed.items()
    }
    write_sealed(path, "calibration", arrays, facts)

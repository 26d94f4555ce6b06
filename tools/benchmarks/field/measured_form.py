"""What a tool left behind -> an ONNX file to measure, and the bytes that its weights take.

Bytes are counted over all units, the embedding and the head included, in two ways:

- *in the file*: every constant of the tool's ONNX file but those that are no weight in the
  original either, as `inspection.bits_per_weight` counts;
- *at best*: the same with floats at 16 bits and an embedding that repeats the head once.

A tool that leaves no ONNX file is counted at best only.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ....frontend.model_source import COMPANIONS
from ....ir import InputError, read_model
from ....ir.analysis.static_values import StaticValues
from ....ir.unit_search import find_units
from ...export import export_folder
from ...inspection import bits_per_weight

if TYPE_CHECKING:
    import torch

_GROUP = 64
_HALF = 2  # bytes of a 16-bit float


@dataclass(frozen=True)
class Form:
    """Something to measure.

    Attributes:
        onnx: The ONNX file or folder.
        bits: Stored bits per weight over all units, at best.
        file_bits: Stored bits per weight in the tool's own file, if it wrote one.
    """

    onnx: Path
    bits: float
    file_bits: float | None


def has_own_file(made: Path) -> bool:
    """Returns whether the tool wrote an ONNX file itself."""
    return (made / "model.onnx").is_file()


def own_file(made: Path, original: Path) -> Form:
    """Returns the tool's ONNX file as it is.

    Raises:
        InputError: It is no readable ONNX model.
    """
    path, facts = made / "model.onnx", made / "copies.json"
    copies = set(json.loads(facts.read_text(encoding="utf-8"))) if facts.is_file() else set()
    file_bits = bits_per_weight(original, path).bits
    return Form(path, _bits_at_best(path, original, copies), file_bits)


def _bits_at_best(path: Path, original: Path, copies: set[str]) -> float:
    before = read_model(original)
    units = find_units(before)
    weights = {unit.weight for unit in units}
    beside = {one.name for one in StaticValues(before).constants if one not in weights}
    total = 0
    for value, tensor in StaticValues(read_model(path)).constants.items():
        if value.name not in beside and value.name not in copies:
            narrow = tensor.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
            total += tensor.size * _HALF if narrow else tensor.nbytes
    return total * 8 / sum(math.prod(unit.shape) for unit in units)


def put_back(made: Path, original: Path, rest: int, folder: Path) -> Form:
    """Writes and exports a folder like ``original`` that has the tool's weights.

    Args:
        made: Holds ``weights.safetensors`` and ``stored.json``.
        original: The Hugging Face folder.
        rest: Bits for what the tool left in floating point; 16 leaves it as it is.
        folder: Where to work; must exist and be empty.

    Raises:
        InputError: The tool's weights are not those of the model.
    """
    from safetensors.torch import load_file, save_file

    tensors = {
        name: tensor
        for file in sorted(original.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    bytes_of: dict[str, Any] = json.loads((made / "stored.json").read_text(encoding="utf-8"))
    _replace(tensors, load_file(made / "weights.safetensors"), bytes_of)
    total, weights = 0.0, 0
    for name, tensor in tensors.items():
        if tensor.ndim >= 2:
            weights += tensor.numel()
            total += bytes_of[name] if name in bytes_of else _round(tensors, name, rest)
    changed = folder / "hf"
    changed.mkdir()
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    for name in COMPANIONS:
        if (original / name).is_file() and "/" not in name:
            shutil.copyfile(original / name, changed / name)
    exported = export_folder(changed, folder / "onnx")
    return Form(exported.output, total * 8 / weights, None)


def _replace(
    tensors: dict[str, torch.Tensor], new: dict[str, torch.Tensor], counted: dict[str, Any]
) -> None:
    unknown = sorted((new.keys() | counted.keys()) - tensors.keys())
    if unknown:
        raise InputError(f"the tool's script names {unknown[0]!r}, which the model lacks")
    if missing := sorted(counted.keys() - new.keys()):
        raise InputError(f"the tool's script counts {missing[0]!r} but does not give it")
    for name, tensor in new.items():
        if tensor.shape != tensors[name].shape:
            raise InputError(f"{name} has the shape {tuple(tensor.shape)} in the result")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{name} is not finite in the result")
        tensors[name] = tensor.to(tensors[name].dtype)


def _round(tensors: dict[str, torch.Tensor], name: str, bits: int) -> float:
    """Rounds a float weight to nearest, if asked for; returns its bytes."""
    import torch

    from ....passes.engine.numerics.gptq import nearest

    tensor = tensors[name]
    if bits >= 16:
        return float(tensor.numel() * _HALF)
    rows = tensor.float().reshape(len(tensor), -1)
    rounded = nearest(rows, bits, _GROUP, torch.ones(rows.shape[1]))
    tensors[name] = rounded.dequantize(_GROUP).reshape(tensor.shape).to(tensor.dtype)
    return len(rows) * (rows.shape[1] * bits + math.ceil(rows.shape[1] / _GROUP) * 16) / 8

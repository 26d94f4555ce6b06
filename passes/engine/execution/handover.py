"""A state as other processes take it up: paths of what is large, by value what is small.

The graph goes into a file whose tensors are where they already were: beside the model that was
read, or, if a pass computed them, in files named by their content. Arrays stay in the sealed
files that hold them; those in memory go into one more. All of it has to lie on storage that
every process sees at the same path.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from ....ir import (
    ArrayStore,
    Calibration,
    InputError,
    MachineError,
    Unit,
    all_graphs,
    read_model,
    stored_bytes,
    write_model,
)
from ....ir.sealed_file import read_seal
from ....ir.tensor_files import origin_of
from ..pipeline.base import PassContext, State
from ..pipeline.progress import SilentProgress

_COMPUTES = ("backend", "ir", "passes")  # folders whose code a worker may run
_SHARED = "data"  # tensors that passes have computed
_SAME_STORAGE = (
    "every machine has to see the model, the output's folder and the cache (MPQC_CACHE) at the"
    " same paths"
)
_SAME_NUMBERS = (
    "install the same versions everywhere; ATEN_CPU_CAPABILITY=avx2 makes processors alike"
)


@dataclass(frozen=True)
class Handover:
    """What another process needs to take up a state.

    Attributes:
        model: The file of the graph.
        weights_of: The model beside which its unchanged tensors lie; None if there are none.
        arrays: The file with each array.
        seals: What the files with arrays say of themselves: key and checksum.
        context: The context, without its arrays.
        arithmetic: What decides how numbers come out here.
    """

    model: Path
    weights_of: Path | None
    arrays: Mapping[str, Path]
    seals: Mapping[Path, tuple[str, str]]
    context: PassContext
    arithmetic: Mapping[str, str]


def hand_over(state: State, folder: Path, name: str) -> Handover:
    """Writes what is not in a file yet.

    Args:
        state: The state; it is unchanged afterwards.
        folder: Where to write, on storage that every process sees.
        name: Names the files of this state.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    path, arrays = folder / f"{name}.onnx", state.context.arrays
    origin = _origin(state.model)
    write_model(state.model, path, shared=folder / _SHARED, weights_of=origin)
    files = dict(arrays.where())
    if arrays.in_memory():
        arrays.save(folder / f"{name}.safetensors", name)
        files.update(dict.fromkeys(arrays.in_memory(), folder / f"{name}.safetensors"))
    seals = {one: read_seal(one) for one in set(files.values())}
    light = replace(
        state.context,
        arrays=ArrayStore(),
        progress=SilentProgress(),
        report={},
        workers=None,
    )
    return Handover(
        model=path,
        weights_of=origin,
        arrays=files,
        seals={one: (seal.key, seal.checksum) for one, seal in seals.items()},
        context=light,
        arithmetic=arithmetic(),
    )


def taken_up(handover: Handover, who: str) -> State:
    """Returns a copy of a state that another process has handed over.

    Args:
        handover: What that process said.
        who: The name of this machine.

    Raises:
        MachineError: Numbers would come out differently here, or a file is missing or another.
    """
    _refuse_other_arithmetic(handover.arithmetic, who)
    try:
        for path, (key, checksum) in handover.seals.items():
            seal = read_seal(path)
            if (seal.key, seal.checksum) != (key, checksum):
                raise InputError(f"{path} is not the same file")
        arrays = ArrayStore.over(handover.arrays)
        model = read_model(handover.model, weights_of=handover.weights_of)
    except InputError as error:
        raise MachineError(f"worker on {who}: {error.message}", hint=_SAME_STORAGE) from error
    context = replace(handover.context, arrays=arrays, calibration=_own(handover))
    return State(model, context)


def _own(handover: Handover) -> Calibration | None:
    """Returns the samples as arrays of this process, which torch may write to."""
    samples = handover.context.calibration
    if samples is None:
        return None
    feeds = [{name: np.array(one) for name, one in feed.items()} for feed in samples.feeds]
    return replace(samples, feeds=feeds)


def arithmetic() -> dict[str, str]:
    """Returns what decides how numbers come out on this machine."""
    return {
        "mpqc": _sources(),
        "torch": metadata.version("torch"),
        "numpy": np.__version__,
        "numba": metadata.version("numba"),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


@cache
def _sources() -> str:
    """Returns a hash of this package's own code: versions do not tell checkouts apart."""
    root, content = Path(__file__).parents[3], hashlib.sha256()
    for folder in _COMPUTES:
        for path in sorted((root / folder).rglob("*.py")):
            content.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return content.hexdigest()[:12]


def weight_checksum(unit: Unit) -> int:
    """Returns the CRC-32 of a stored weight."""
    return zlib.crc32(stored_bytes(unit.tensor))


def check_weight(unit: Unit, checksum: int) -> None:
    """Refuses a weight that is not the one of the process that asks.

    Raises:
        MachineError: The storage of this machine holds another one.
    """
    if weight_checksum(unit) != checksum:
        raise MachineError(
            f"a worker reads another weight {unit.name!r} than this process",
            hint=_SAME_STORAGE,
        )


def _refuse_other_arithmetic(theirs: Mapping[str, str], who: str) -> None:
    for what, ours in arithmetic().items():
        if theirs.get(what) != ours:
            raise MachineError(
                f"worker on {who} has {what} {ours}, this machine {theirs.get(what)}",
                hint=_SAME_NUMBERS,
            )


def _origin(model: ir.Model) -> Path | None:
    """Returns the file of the model beside which unchanged tensors lie."""
    for graph in all_graphs(model.graph):
        for value in graph.initializers.values():
            origin = origin_of(value.const_value) if value.const_value is not None else None
            if origin is not None:
                return origin.model
    return None

"""Arrays from files that strangers made: .npz and .safetensors, nothing executable."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..ir import InputError
from ..ir.tensor_files import LARGEST_RANK, LARGEST_SIZE
from ..ir.text_form import did_you_mean
from .model_inputs import ModelInput

ARRAY_SUFFIXES = (".npz", ".safetensors")
_LARGEST_IN_ALL = 4 << 30
_SUSPICIOUS_RATIO = 200  # honest data does not deflate further than this
_SMALL_MEMBER = 1 << 20  # ... except when it is small
_LARGEST_HEADER = 10_000
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_BROKEN_HEADER = (
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of one file.

    Raises:
        InputError: The file is broken, holds objects, or unpacks to far more than its size.
    """
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    return _read_npz(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if path.stat().st_size > _LARGEST_IN_ALL:
        raise InputError(f"{path} is larger than {_LARGEST_IN_ALL >> 30} GB")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (
        SafetensorError,
        OSError,
        TypeError,
        AttributeError,
        ValueError,
        KeyError,
    ) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _refuse_bombs(path, members)
            arrays = {}
            for member in members:
                with archive.open(member) as stream:
                    name = member.filename.removesuffix(".npy")
                    arrays[name] = _read_npy(f"{path}: {name}", stream, member.file_size)
            return arrays
    except _BROKEN_ARCHIVE as error:
        raise InputError(f"{path} is not a readable .npz file: {error}") from error


def _refuse_bombs(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    if sum(member.file_size for member in members) > _LARGEST_IN_ALL:
        raise InputError(f"{path} unpacks to more than {_LARGEST_IN_ALL >> 30} GB")
    for member in members:
        if not member.filename.endswith(".npy"):
            raise InputError(f"{path} holds {member.filename!r}, which is not an array")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path} is packed by a method that .npz files do not use")
        ratio = member.file_size / max(1, member.compress_size)
        if member.file_size > _SMALL_MEMBER and ratio > _SUSPICIOUS_RATIO:
            raise InputError(
                f"{path}: {member.filename!r} unpacks to {ratio:.0f} times its size",
                hint="if the data is really that regular, save it with numpy.savez",
            )


def _read_npy(what: str, stream: IO[bytes], size: int) -> np.ndarray:
    """Reads one array whose header has been held against the size of its member."""
    layout = np.lib.format
    try:
        version = layout.read_magic(stream)
        read_header: Any = {
            (1, 0): layout.read_array_header_1_0,
            (2, 0): layout.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream, max_header_size=_LARGEST_HEADER)
    except _BROKEN_HEADER as error:
        raise InputError(f"{what} is not a readable array") from error
    if dtype.hasobject:
        raise InputError(f"{what} holds Python objects", hint="save plain numbers")
    if dtype.kind not in "biufcV" or not dtype.itemsize:
        raise InputError(f"{what} has the type {dtype}", hint="save plain numbers")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise InputError(f"{what} claims the shape {shape}, more than the file holds")
    if len(shape) > LARGEST_RANK or math.prod(max(dim, 1) for dim in shape) >= LARGEST_SIZE:
        raise InputError(f"{what} claims the impossible shape {shape}")
    content = stream.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize:
        raise InputError(f"{what} is truncated")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return np.asarray(array, order="C")


def array_samples(
    files: Sequence[Path], inputs: list[ModelInput], count: int
) -> list[dict[str, np.ndarray]]:
    """Returns at most ``count`` samples, spread evenly over those in ``files``.

    Each file holds one array per input, named like it, whose first axis counts samples.

    Raises:
        InputError: A name, type, shape or number does not fit.
    """
    samples: list[dict[str, np.ndarray]] = []
    for path in files:
        samples += _split(path, read_arrays(path), inputs)
    if not samples:
        raise InputError("the calibration files hold no samples")
    count = min(count, len(samples))
    return [samples[at * len(samples) // count] for at in range(count)]


def _split(
    path: Path, arrays: Mapping[str, np.ndarray], inputs: list[ModelInput]
) -> list[dict[str, np.ndarray]]:
    known = {one.name for one in inputs}
    for name in arrays:
        if name not in known:
            raise InputError(
                f"{path}: the model has no input {name!r}", hint=did_you_mean(name, known)
            )
    for name in sorted(known - arrays.keys()):
        raise InputError(f"{path}: there is no array for the input {name!r}")
    parts = {one.name: _samples_of(path, one, arrays[one.name]) for one in inputs}
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {number}" for name, number in counts.items())
        raise InputError(f"{path}: the inputs have different numbers of samples ({listed})")
    return [
        {name: part[at] for name, part in parts.items()}
        for at in range(min(counts.values(), default=0))
    ]


def _samples_of(path: Path, one: ModelInput, array: np.ndarray) -> list[np.ndarray]:
    array = _checked(path, one, array)
    rank = len(one.dims)
    if array.ndim == rank + 1:
        parts = list(array)
    elif array.ndim != rank:
        raise InputError(
            f"{path}: the input {one.name!r} has shape {_shown(one)}, not {array.shape}"
        )
    elif rank < 2:
        parts = [array]
    else:
        batch = one.dims[0] if isinstance(one.dims[0], int) and one.dims[0] > 0 else 1
        whole = len(array) - len(array) % batch
        parts = [array[at : at + batch] for at in range(0, whole, batch)]
    for part in parts:
        if any(
            isinstance(d, int) and d != s for d, s in zip(one.dims, part.shape, strict=True)
        ):
            raise InputError(
                f"{path}: the input {one.name!r} has shape {_shown(one)}, not {part.shape}"
            )
    return parts


def _checked(path: Path, one: ModelInput, array: np.ndarray) -> np.ndarray:
    """Returns ``array`` in the type of the input, if that loses nothing that matters."""
    kinds = "f" if one.dtype.kind in "fV" else "iub"
    if array.dtype != one.dtype and array.dtype.kind not in kinds:
        raise InputError(
            f"{path}: the input {one.name!r} takes {one.dtype}, not {array.dtype}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{path}: the array {one.name!r} holds NaN or infinite values")
    if one.vocabulary and array.size and not 0 <= array.min() <= array.max() < one.vocabulary:
        raise InputError(
            f"{path}: the token ids of {one.name!r} must be 0 to {one.vocabulary - 1}"
        )
    return array.astype(one.dtype)


def _shown(one: ModelInput) -> str:
    return "(" + ", ".join(str(dim) if dim != "" else "?" for dim in one.dims) + ")"

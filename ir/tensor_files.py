"""Tensors whose bytes lie in files: which of them may be opened, and how they are mapped.

A model file is untrusted: it names files, offsets and lengths. Nothing is opened before the
name has been checked, nothing is read that the file does not hold, every file is mapped once.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
import onnx_ir as ir

from .errors import InputError

_UNSAFE_HINT = "external data has to lie in the model's own folder, named by a relative path"
_PACKED_BITS = (2, 4, 6)
LARGEST_SIZE = 1 << 48  # of a dimension, and of all that are not 0 multiplied
LARGEST_RANK = 32
_LONGEST_LOCATION = 4096


def byte_size(dtype: ir.DataType, count: int) -> int:
    """Returns the stored bytes of ``count`` elements (sub-byte types are packed)."""
    return -(-count * dtype.bitwidth // 8)


def element_count(tensor: onnx.TensorProto) -> int:
    """Returns the number of elements, without overflow.

    Raises:
        InputError: There are too many dimensions, or one is negative or beyond sense.
    """
    if len(tensor.dims) > LARGEST_RANK:
        raise InputError(f"tensor {tensor.name!r} has {len(tensor.dims)} dimensions")
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(
            f"tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}"
        )
    if prod(max(dim, 1) for dim in tensor.dims) >= LARGEST_SIZE:
        raise InputError(f"tensor {tensor.name!r} has impossible sizes: {list(tensor.dims)}")
    return prod(tensor.dims)


@dataclass(frozen=True)
class Extent:
    """Where the bytes of one external tensor lie.

    Attributes:
        location: File, relative to the model's folder.
        offset: First byte.
        length: Number of bytes.
    """

    location: str
    offset: int
    length: int


def _number(tensor: onnx.TensorProto, key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise InputError(
            f"tensor {tensor.name!r}: external {key} {text[:40]!r} is not a byte count"
        )
    return int(text)


def extent_of(tensor: onnx.TensorProto) -> Extent:
    """Reads and checks the external-data entries of a tensor, without touching any file.

    Raises:
        InputError: An entry is missing, given twice, unsafe, or contradicts the shape.
    """
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in ("location", "offset", "length") and entry.key in entries:
            raise InputError(f"tensor {tensor.name!r} gives external {entry.key} twice")
        entries[entry.key] = entry.value
    expected = byte_size(ir.DataType(tensor.data_type), element_count(tensor))
    length = _number(tensor, "length", entries.get("length", str(expected)))
    if length != expected:
        raise InputError(
            f"tensor {tensor.name!r} needs {expected} bytes but its external data has {length}"
        )
    check_location(tensor.name, entries.get("location", ""))
    offset = _number(tensor, "offset", entries.get("offset", "0"))
    return Extent(entries["location"], offset, length)


def check_location(name: str, location: str | bytes) -> None:
    """Refuses external-data locations that could lead out of the model's folder.

    Raises:
        InputError: The location is not a plain relative path.
    """
    text = location if isinstance(location, str) else repr(location)
    path = PurePosixPath(text)
    unsafe = (
        isinstance(location, bytes)
        or not text
        or "\0" in text
        or "\\" in text
        or path.is_absolute()
        or bool(PureWindowsPath(text).drive)
        or ".." in path.parts
    )
    if unsafe or len(text) > _LONGEST_LOCATION:
        what = "unsafe" if unsafe else f"impossible ({len(text)} letters)"
        raise InputError(
            f"tensor {name!r} has an {what} external data location {text[:100]!r}",
            hint=_UNSAFE_HINT,
        )


def _in_same_hub_repository(model: Path, found: Path) -> bool:
    """The Hugging Face cache links every file of a repository into its ``blobs`` folder."""
    blobs = Path(os.path.realpath(model)).parent
    return blobs.name == "blobs" and found.parent == blobs


@dataclass(frozen=True)
class Origin:
    """Where a tensor was read.

    Attributes:
        model: The file of the model beside which its bytes lie.
        extent: Which bytes they are.
    """

    model: Path
    extent: Extent


_ORIGIN = "mpqc.origin"


def mark_origin(tensor: ir.TensorProtocol, origin: Origin) -> None:
    """Notes where a tensor was read."""
    tensor.meta[_ORIGIN] = origin


def origin_of(tensor: ir.TensorProtocol) -> Origin | None:
    """Returns where a tensor was read; None if it was computed or stood in the protobuf."""
    found = tensor.meta.get(_ORIGIN)
    return found if isinstance(found, Origin) else None


class TensorFiles:
    """The data files beside one model, each opened and mapped once, read-only.

    Those of a model that shares weights with ``weights_of`` may lie beside that one, too.
    """

    def __init__(self, model: Path, weights_of: Path | None = None) -> None:
        self._models = [model, *([] if weights_of is None else [weights_of])]
        self._maps: dict[str, np.ndarray] = {}
        self._paths: dict[str, Path | None] = {}
        self._homes: dict[str, Path] = {}

    def origin(self, extent: Extent) -> Origin:
        """Returns where bytes are that ``bytes_of`` has mapped."""
        return Origin(self._homes[extent.location], extent)

    def _folders(self) -> list[tuple[Path, Path]]:
        """The folder that the user named, then, if a model is a link, that of its target."""
        folders = []
        for model in self._models:
            named, real = model.parent, Path(os.path.realpath(model)).parent
            folders.append((model, named))
            if real != Path(os.path.realpath(named)):
                folders.append((model, real))
        return folders

    def path_of(self, location: str) -> Path | None:
        """Returns the existing file at ``location``, links resolved, or None.

        Raises:
            InputError: It leads out of the model's folder.
        """
        if location not in self._paths:
            self._paths[location] = self._resolve(location)
        return self._paths[location]

    def _resolve(self, location: str) -> Path | None:
        for model, folder in self._folders():
            found = Path(os.path.realpath(folder / location))
            try:
                if not found.exists():
                    continue
            except OSError as error:  # a name that no file can have
                raise InputError(
                    f"external data {location[:60]!r} cannot be looked up: {error.strerror}"
                ) from error
            inside = found.is_relative_to(os.path.realpath(folder))
            if not inside and not _in_same_hub_repository(model, found):
                raise InputError(
                    f"external data {location!r} leads out of the model's folder, to {found}",
                    hint=_UNSAFE_HINT,
                )
            self._homes[location] = model
            return found
        return None

    def _map(self, location: str) -> np.ndarray:
        path = self.path_of(location)
        if path is None:
            raise InputError(f"external data file {location!r} is missing")
        # Without O_NONBLOCK, opening a named pipe would hang for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            opened = os.open(path, flags)
        except OSError as error:
            raise InputError(f"cannot open external data {path}: {error.strerror}") from error
        try:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"external data {path} is not a regular file")
            if status.st_size == 0:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(opened, 0, access=mmap.ACCESS_READ), np.uint8)
        finally:
            os.close(opened)

    def bytes_of(self, name: str, extent: Extent) -> np.ndarray:
        """Returns the bytes of a tensor, mapped, not read.

        Raises:
            InputError: The file cannot be opened or is shorter than the tensor says.
        """
        if extent.location not in self._maps:
            self._maps[extent.location] = self._map(extent.location)
        mapped = self._maps[extent.location]
        if extent.offset + extent.length > mapped.size:
            raise InputError(
                f"tensor {name!r} ends at byte {extent.offset + extent.length} of "
                f"{extent.location!r}, which has {mapped.size} bytes",
                hint="the file is truncated or belongs to another model; fetch it again",
            )
        return mapped[extent.offset : extent.offset + extent.length]


def tensor_of(
    raw: np.ndarray, dtype: ir.DataType, shape: ir.Shape, name: str
) -> ir.TensorProtocol:
    """Wraps stored bytes as a tensor without copying them."""
    if dtype.bitwidth in _PACKED_BITS:
        return ir.PackedTensor(raw, dtype, shape=shape, name=name)
    array = raw.view(np.dtype(dtype.numpy()).newbyteorder("<")).reshape(shape.numpy())
    return ir.Tensor(array, dtype, shape=shape, name=name)


def stored_bytes(tensor: ir.TensorProtocol) -> memoryview:
    """Returns the bytes of a tensor as ONNX stores them, without a copy where possible."""
    raw = getattr(tensor, "raw", None)
    native = isinstance(raw, np.ndarray) and raw.dtype.isnative and raw.flags.c_contiguous
    if isinstance(tensor, (ir.Tensor, ir.PackedTensor)) and native and raw is not None:
        packed_apart = isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth < 8
        if not packed_apart and raw.size:
            return memoryview(raw.reshape(-1).view(np.uint8))
    return memoryview(tensor.tobytes())

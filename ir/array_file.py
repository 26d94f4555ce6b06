"""A safetensors file whose arrays are filled in place: as large as disk, not as memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import InternalError

_NAMES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64", np.dtype(np.int32): "I32"}
_METADATA_ROOM = 1 << 20  # bytes kept for text that is known only at the end


class ArrayFile:
    """A file under construction. Arrays start as zeros and are memory-mapped one at a time."""

    def __init__(
        self, path: Path, header: dict[str, object], start: int, dtype: npt.DTypeLike
    ) -> None:
        self._path, self._header, self._start = path, header, start
        self._dtype = np.dtype(dtype)

    @classmethod
    def create(
        cls, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: npt.DTypeLike
    ) -> ArrayFile:
        """Lays out a file of zeros.

        Args:
            path: Where; an existing file is replaced.
            shapes: Name and shape of every array.
            dtype: float32, float64 or int32, the same for all.
        """
        item = np.dtype(dtype)
        header: dict[str, object] = {}
        at = 0
        for name, shape in sorted(shapes.items()):
            size = int(np.prod(shape, dtype=np.int64)) * item.itemsize
            header[name] = {
                "dtype": _NAMES[item],
                "shape": list(shape),
                "data_offsets": [at, at + size],
            }
            at += size
        start = 8 + len(json.dumps(header)) + _METADATA_ROOM
        start += -start % 64
        with path.open("wb") as file:
            file.truncate(start + at)
        return cls(path, header, start, item)

    def array(self, name: str) -> np.ndarray:
        """Returns a writable view of one array; writes to it go to the file."""
        entry = self._header[name]
        assert isinstance(entry, dict)
        return np.memmap(
            self._path,
            dtype=self._dtype,
            mode="r+",
            offset=self._start + entry["data_offsets"][0],
            shape=tuple(entry["shape"]),
        )

    def close(self, metadata: Mapping[str, str]) -> None:
        """Writes the header; only now is the file a safetensors file.

        Raises:
            InternalError: The metadata is larger than the room kept for it.
        """
        header = {"__metadata__": dict(metadata), **self._header}
        text = json.dumps(header).encode()
        room = self._start - 8
        if len(text) > room:
            raise InternalError(
                f"{self._path.name}: metadata of {len(text)} bytes is too long"
            )
        with self._path.open("r+b") as file:
            file.write(struct.pack("<Q", room) + text.ljust(room))

"""Safetensors files that prove themselves: key and checksum stand in the header.

The checksum is CRC-32 over every byte of the file, its own digits taken as zeros. It detects
flipped bits, blocks that were never written and truncation, and costs far less than a
cryptographic hash. It does not protect against anyone who may write to the folder.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .atomic_file import replacing
from .errors import InputError, InternalError

Layout = Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]

_FORMAT = "mpqc.sealed/1"
_BLANK = b"0" * 8
_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{8})"')
_METADATA_ROOM = 1 << 20  # bytes kept for text that is known only at the end
_SMALL_ROOM = 1 << 12  # for what stands around facts that are known from the start
_LARGEST_HEADER = 100_000_000  # what the safetensors format allows
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Seal:
    """What a sealed file says of itself.

    Attributes:
        key: Names everything that the content depends on.
        checksum: Eight hexadecimal digits.
        facts: Anything that JSON can say.
    """

    key: str
    checksum: str
    facts: dict[str, Any]


_verified: dict[tuple[str, int, int, int], Seal] = {}  # by path and state of the file


class ArrayFile:
    """A file under construction: as large as disk, not as memory.

    Arrays start as zeros and are memory-mapped one at a time.

    Attributes:
        facts: What the file shall say of itself; may be changed until the end.
    """

    def __init__(self, file: BinaryIO, layout: Layout, room: int = _METADATA_ROOM) -> None:
        """Reserves the space for all arrays.

        Args:
            file: The file, empty and open for writing.
            layout: Shape and type of every array, by its name.
            room: Bytes to keep for the text of ``facts``.
        """
        self.facts: dict[str, Any] = {}
        self._file, self._path = file, Path(file.name)
        self._entries: dict[str, tuple[tuple[int, ...], np.dtype[Any], int]] = {}
        names = sum(len(json.dumps(name)) + 120 for name in layout)
        self._start = _aligned(8 + 2 * names + room)
        self._end = self._start
        # Wide elements first, so that all are aligned.
        arrays = [(name, shape, np.dtype(kind)) for name, (shape, kind) in layout.items()]
        for array in sorted(arrays, key=lambda one: (-one[2].itemsize, one[0])):
            self._enter(*array)
        self._reserve()

    @property
    def names(self) -> frozenset[str]:
        """The names of all arrays."""
        return frozenset(self._entries)

    def array(self, name: str) -> np.ndarray:
        """Returns a writable view of one array; what is written there is in the file."""
        shape, kind, start = self._entries[name]
        if 0 in shape:
            return np.zeros(shape, kind)
        return np.memmap(self._path, dtype=kind, mode="r+", offset=start, shape=shape)

    def _enter(self, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self._entries[name] = (shape, kind, self._end)
        self._end += int(np.prod(shape, dtype=np.int64)) * kind.itemsize

    def _reserve(self) -> None:
        """Takes the space now: with mapped memory a full disk would kill the process."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, self._end)
        self._file.truncate(self._end)

    def seal(self, key: str) -> str:
        """Writes the header, only now is it a safetensors file; returns the checksum."""
        metadata = {"format": _FORMAT, "key": key, "checksum": _BLANK.decode()}
        metadata["facts"] = json.dumps(self.facts)
        header = {name: self._entry(*entry) for name, entry in self._entries.items()}
        text = json.dumps({"__metadata__": metadata, **header}).encode()
        room = self._start - 8
        if len(text) > room:
            raise InternalError(
                f"{self._path.name}: a header of {len(text)} bytes is too long"
            )
        self._file.seek(0)
        self._file.write(struct.pack("<Q", room) + text.ljust(room))
        return _write_checksum(self._file)

    def _entry(
        self, shape: tuple[int, ...], kind: np.dtype[Any], start: int
    ) -> dict[str, object]:
        first = start - self._start
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        name = "BOOL" if kind.kind == "b" else f"{kind.kind.upper()}{8 * kind.itemsize}"
        return {"dtype": name, "shape": list(shape), "data_offsets": [first, first + size]}


def _aligned(size: int) -> int:
    return size + -size % 64


@contextmanager
def sealing(
    path: Path,
    key: str,
    layout: Layout,
    room: int = _METADATA_ROOM,
    *,
    lasting: bool = True,
) -> Iterator[ArrayFile]:
    """Gives a file to fill, which takes the place of ``path`` only if the block ends well.

    Args:
        path: The file.
        key: Names everything that the content depends on.
        layout: Shape and type of every array, by its name.
        room: Bytes to keep for the text of its facts.
        lasting: Whether it has to survive a power cut.
    """
    with replacing(path, lasting=lasting) as file:
        arrays = ArrayFile(file, layout, room)
        yield arrays
        checksum = arrays.seal(key)
    _verified[_state(path)] = Seal(key, checksum, arrays.facts)


def write_sealed(
    path: Path,
    key: str,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    *,
    lasting: bool = True,
) -> None:
    """Writes ``arrays`` and ``facts`` to ``path``, whole or not at all."""
    layout = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    room = 2 * len(json.dumps(facts)) + len(key) + _SMALL_ROOM
    with sealing(path, key, layout, room, lasting=lasting) as file:
        for name, array in arrays.items():
            file.array(name)[...] = array
        file.facts.update(facts)


def read_seal(path: Path) -> Seal:
    """Checks a sealed file, once per process, and returns what it says of itself.

    Raises:
        InputError: It is damaged, cannot be read, or is none of ours.
    """
    try:
        state = _state(path)
        if state not in _verified:
            with path.open("rb") as file:
                _verified[state] = _checked(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return _verified[state]


def _state(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return os.path.realpath(path), found.st_ino, found.st_size, found.st_mtime_ns


def _checked(file: BinaryIO) -> Seal:
    """Returns the seal of an open file.

    Raises:
        ValueError: It is not what was once written.
    """
    header = _header(file)
    found = _CHECKSUM.search(header)
    if found is None:
        raise ValueError("it has no checksum")
    if int(found[1], 16) != _checksum(file, header, found):
        raise ValueError("its checksum is not that of its content")
    key, facts = _label(header)
    return Seal(key, found[1].decode(), facts)


def read_label(file: BinaryIO) -> tuple[str, dict[str, Any]]:
    """Returns key and facts of an open file, whose content may be damaged all the same.

    Raises:
        ValueError: The header is none, or none of ours.
        KeyError: So it is.
    """
    return _label(_header(file))


def _label(header: bytes) -> tuple[str, dict[str, Any]]:
    metadata = json.loads(header)["__metadata__"]
    facts = json.loads(metadata["facts"])
    if metadata["format"] != _FORMAT or not isinstance(facts, dict):
        raise ValueError("another program wrote it")
    return metadata["key"], facts


def _header(file: BinaryIO) -> bytes:
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if size > _LARGEST_HEADER:
        raise ValueError("it is no safetensors file")
    return file.read(size)


def _checksum(file: BinaryIO, header: bytes, digits: re.Match[bytes]) -> int:
    blank = header[: digits.start(1)] + _BLANK + header[digits.end(1) :]
    total = zlib.crc32(blank)
    file.seek(8 + len(header))
    while chunk := file.read(_CHUNK):
        total = zlib.crc32(chunk, total)
    return total


def _write_checksum(file: BinaryIO) -> str:
    file.flush()
    header = _header(file)
    digits = _CHECKSUM.search(header)
    assert digits is not None
    text = f"{_checksum(file, header, digits):08x}"
    file.seek(8 + digits.start(1))
    file.write(text.encode())
    return text

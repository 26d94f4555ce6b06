"""The side store: named arrays that annotations speak of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import mkstemp

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import InputError, MachineError, MissingFact
from .machine_errors import machine_errors
from .sealed_file import read_seal, write_sealed

_LARGE = 1 << 20  # bytes from which a map of a file is worth having
# A file may be broken in ways that its reader did not foresee.
UNREADABLE = (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError)


class ArrayStore:
    """Named arrays, some in memory, some in read-only sealed files opened on demand.

    An array in memory hides one of the same name in a file.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        """Begins without arrays.

        Args:
            scratch: Folder for arrays that are large. They are mapped from files there, and
                take memory only while they are looked at. None keeps all in memory.
        """
        self._memory: dict[str, np.ndarray] = {}
        self._files: dict[str, Path] = {}
        self._scratch = scratch

    def put(self, name: str, array: np.ndarray) -> None:
        """Keeps ``array`` under ``name``, until it is put again."""
        kept = np.ascontiguousarray(array)
        if self._scratch is not None and kept.nbytes >= _LARGE:
            kept = self._mapped(self._scratch, kept)
        self._memory[name] = kept

    def _mapped(self, folder: Path, array: np.ndarray) -> np.ndarray:
        """Returns a read-only map of a new file, which is gone with the last look at it."""
        with machine_errors(folder, "set TMPDIR to another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            number, path = mkstemp(suffix=".npy", dir=folder)
            with os.fdopen(number, "wb") as file:
                np.save(file, array, allow_pickle=False)
            mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        os.unlink(path)  # what is mapped stays readable
        return mapped

    def get(self, name: str) -> np.ndarray:
        """Returns the array called ``name``.

        Raises:
            MissingFact: There is no such array.
            MachineError: The file with it has vanished, or can no longer be read.
        """
        if name in self._memory:
            return self._memory[name]
        if name not in self._files:
            raise MissingFact(f"no array {name!r} in the side store")
        path = self._files[name]
        try:
            with safe_open(path, framework="numpy") as file:
                array: np.ndarray = file.get_tensor(name)
        except UNREADABLE as error:
            raise MachineError(
                f"{path} can no longer be read: {error}", hint="run the command again"
            ) from error
        return array

    def __contains__(self, name: str) -> bool:
        return name in self._memory or name in self._files

    def names(self) -> Iterator[str]:
        """Yields all names, sorted."""
        yield from sorted({*self._memory, *self._files})

    def discard(self, prefix: str) -> None:
        """Forgets every array whose name starts with ``prefix``."""
        for name in [one for one in self.names() if one.startswith(prefix)]:
            self._memory.pop(name, None)
            self._files.pop(name, None)

    def mount(self, path: Path) -> None:
        """Makes the arrays of a sealed file readable without loading them.

        Raises:
            InputError: The file is damaged.
        """
        self._files.update(dict.fromkeys(_names_in(path), path))

    def load(self, path: Path) -> None:
        """Takes the arrays of a sealed file into memory.

        Raises:
            InputError: The file is damaged.
        """
        names = _names_in(path)
        with safe_open(path, framework="numpy") as file:
            for name in names:
                self.put(name, file.get_tensor(name))

    @classmethod
    def over(cls, files: Mapping[str, Path]) -> ArrayStore:
        """Returns a store of arrays in sealed files, each by its name.

        Raises:
            InputError: A file is damaged.
        """
        store, known = cls(), {path: set(_names_in(path)) for path in set(files.values())}
        for name, path in files.items():
            if name not in known[path]:
                raise InputError(f"{path} has no array {name!r}")
            store._files[name] = path
        return store

    def where(self) -> Mapping[str, Path]:
        """Returns for every array that is not in memory the mounted file that supplies it."""
        return {name: path for name, path in self._files.items() if name not in self._memory}

    def files(self) -> set[Path]:
        """Returns the mounted files that still supply an array."""
        return set(self.where().values())

    def in_memory(self) -> Mapping[str, np.ndarray]:
        """Returns the arrays that no file holds."""
        return self._memory

    def save(self, path: Path, key: str = "") -> None:
        """Writes the arrays in memory to a sealed file, whole or not at all.

        Args:
            path: The file.
            key: Names what the arrays belong to.
        """
        write_sealed(path, key, self._memory, {})


def _names_in(path: Path) -> list[str]:
    read_seal(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return sorted(file.keys())
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged: {error}") from error

"""The side store: named arrays that annotations speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from .errors import InternalError


class ArrayStore:
    """Named arrays, some in memory, some in read-only safetensors files opened on demand.

    An array in memory hides one of the same name in a file.
    """

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}
        self._files: dict[str, Path] = {}

    def put(self, name: str, array: np.ndarray) -> None:
        """Keeps ``array`` in memory under ``name``."""
        self._memory[name] = np.ascontiguousarray(array)

    def get(self, name: str) -> np.ndarray:
        """Returns the array called ``name``.

        Raises:
            InternalError: There is no such array.
        """
        if name in self._memory:
            return self._memory[name]
        if name not in self._files:
            raise InternalError(f"no array {name!r} in the side store")
        with safe_open(self._files[name], framework="numpy") as file:
            array: np.ndarray = file.get_tensor(name)
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
        """Makes the arrays of a safetensors file readable without loading them."""
        with safe_open(path, framework="numpy") as file:
            self._files.update(dict.fromkeys(file.keys(), path))

    def files(self) -> set[Path]:
        """Returns the mounted files that still supply an array."""
        return {path for name, path in self._files.items() if name not in self._memory}

    def in_memory(self) -> Mapping[str, np.ndarray]:
        """Returns the arrays that no file holds."""
        return self._memory

    def save(self, path: Path) -> None:
        """Writes the arrays in memory to a safetensors file."""
        save_file(dict(sorted(self._memory.items())), path)

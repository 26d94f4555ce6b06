"""Numbers of single tokens, kept on disk while they are gathered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

_TYPE = np.dtype(np.float16)


class TokenFile:
    """Arrays that grow at their ends, in turns."""

    def __init__(self, folder: Path) -> None:
        """Starts empty; appended values go to a nameless file in ``folder``."""
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115, as long as the object
        self._pieces: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def append(self, name: str, values: np.ndarray) -> None:
        """Appends float16 ``values`` under ``name``."""
        self._pieces[name].append((self._file.tell(), values.size))
        self._file.write(values.astype(_TYPE, copy=False).tobytes())

    def take(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields every array with its name, and forgets them."""
        for name in self._pieces:
            yield name, self._read(name)
        self._file.close()

    def _read(self, name: str) -> np.ndarray:
        parts = []
        for start, size in self._pieces[name]:
            self._file.seek(start)
            parts.append(np.frombuffer(self._file.read(size * _TYPE.itemsize), _TYPE))
        return np.concatenate(parts)

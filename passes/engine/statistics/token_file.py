"""Numbers of single tokens, kept on disk while they are gathered."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from safetensors.numpy import save_file

_TYPE = np.dtype(np.float16)


class TokenFile:
    """Arrays that grow at their ends, in turns."""

    def __init__(self, folder: Path) -> None:
        """Starts empty; appended values go to a nameless file in ``folder``."""
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115, as long as the object
        self._pieces: dict[str, list[tuple[int, int]]] = defaultdict(list)

    @property
    def filled(self) -> bool:
        """Whether anything was appended."""
        return bool(self._pieces)

    def append(self, name: str, values: np.ndarray) -> None:
        """Appends float16 ``values`` under ``name``."""
        self._pieces[name].append((self._file.tell(), values.size))
        self._file.write(values.astype(_TYPE, copy=False).tobytes())

    def save(self, path: Path) -> None:
        """Writes the arrays to a safetensors file, if there are any, and forgets them."""
        if self.filled:
            save_file({name: self._read(name) for name in self._pieces}, path)
        self._file.close()

    def _read(self, name: str) -> np.ndarray:
        parts = []
        for start, size in self._pieces[name]:
            self._file.seek(start)
            parts.append(np.frombuffer(self._file.read(size * _TYPE.itemsize), _TYPE))
        return np.concatenate(parts)

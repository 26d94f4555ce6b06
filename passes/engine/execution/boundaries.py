"""Tensors on disk, one small file for each: what waits at the boundaries of blocks."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from itertools import count
from pathlib import Path

import numpy as np
import torch


class DiskTensors(MutableMapping[str, torch.Tensor]):
    """Tensors by name, in files of a folder that is made when the first one comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._halves: set[Path] = set()  # files that hold bfloat16
        self._numbers = count()

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if name not in self._files:
            self._files[name] = self._folder / f"{next(self._numbers):06d}.npy"
        path, stored = self._files[name], tensor.detach().cpu()
        if stored.dtype == torch.bfloat16:  # which numpy does not have
            stored = stored.view(torch.uint16)
            self._halves.add(path)
        np.save(path, stored.numpy(), allow_pickle=False)

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._files[name]
        tensor = torch.from_numpy(np.load(path, allow_pickle=False))
        return tensor.view(torch.bfloat16) if path in self._halves else tensor

    def __delitem__(self, name: str) -> None:
        self._files.pop(name).unlink()

    def __contains__(self, name: object) -> bool:
        return name in self._files  # without reading it

    def clear(self) -> None:
        """Removes everything."""
        for path in self._files.values():
            path.unlink()
        self._files.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

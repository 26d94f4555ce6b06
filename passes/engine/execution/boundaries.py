"""Values that cross block boundaries, kept on disk, one small file for each."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import torch

from ....ir import Feeds
from ....ir.analysis.blocks import Block


class Boundaries:
    """What a sample has left at the block boundaries: values, and gradients going back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[str, str], Path] = {}
        self._halves: set[Path] = set()  # what holds bfloat16
        self._numbers = count()

    def put(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        """Keeps a tensor under ``name``; ``kind`` is ``value`` or ``gradient``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if (kind, name) not in self._files:
            self._files[kind, name] = self._folder / f"{next(self._numbers):06d}.npy"
        path, kept = self._files[kind, name], tensor.detach()
        if kept.dtype == torch.bfloat16:  # which numpy does not have
            kept = kept.view(torch.uint16)
            self._halves.add(path)
        np.save(path, kept.numpy(), allow_pickle=False)

    def add(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        """Adds to what is kept under ``name``."""
        earlier = self.get(kind, name)
        self.put(kind, name, tensor if earlier is None else earlier + tensor)

    def get(self, kind: str, name: str) -> torch.Tensor | None:
        """Returns the tensor under ``name``, or None."""
        path = self._files.get((kind, name))
        if path is None:
            return None
        tensor = torch.from_numpy(np.load(path, allow_pickle=False))
        return tensor.view(torch.bfloat16) if path in self._halves else tensor

    def drop(self, kind: str, name: str) -> None:
        """Forgets the tensor under ``name``."""
        path = self._files.pop((kind, name), None)
        if path is not None:
            path.unlink()

    def size(self) -> int:
        """Returns the bytes on disk."""
        return sum(path.stat().st_size for path in self._files.values())

    def clear(self) -> None:
        """Removes everything."""
        for path in self._files.values():
            path.unlink()
        self._files.clear()


class Sample:
    """One sample on its way through the blocks.

    Attributes:
        feeds: The inputs.
        real: Which of its tokens are no padding, bool, flat; None where all are.
        boundaries: What it has left between blocks.
        generator: Draws its labels.
    """

    def __init__(
        self, feeds: Feeds, folder: Path, seed: int = 0, mask: str | None = None
    ) -> None:
        arrays = ((name, np.ascontiguousarray(array)) for name, array in feeds.items())
        self.feeds = {name: torch.from_numpy(array) for name, array in arrays}
        real = self.feeds[mask].reshape(-1) != 0 if mask in self.feeds else None
        self.real = real if real is not None and not bool(real.all()) else None
        self.boundaries = Boundaries(folder)
        self.generator = torch.Generator().manual_seed(seed)

    def real_of(self, places: int) -> torch.Tensor | None:
        """Returns which of so many places are no padding, or None where nobody can tell."""
        return self.real if self.real is not None and len(self.real) == places else None

    def given(self, block: Block) -> dict[str, torch.Tensor]:
        """Returns what the block reads: graph inputs and values of earlier blocks."""
        found = {}
        for value in block.inputs:
            name = str(value.name)
            tensor = self.feeds.get(name)
            if tensor is None:
                tensor = self.boundaries.get("value", name)
            assert tensor is not None, f"{name} was not kept"
            found[name] = tensor
        return found

"""Blocks that a sample has been through and can go back through without running again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .samples import Values


@dataclass(frozen=True)
class Passage:
    """A block that has run so that gradients can come back.

    Attributes:
        values: What it was given and what it made.
        sources: Of those, where gradients end.
    """

    values: Values
    sources: dict[str, torch.Tensor]


class Room:
    """Counts the bytes that passages keep.

    Attributes:
        left: Bytes that may still be kept; below zero when more are.
    """

    def __init__(self, most: int) -> None:
        """Starts with nothing kept.

        Args:
            most: Bytes that may be kept.
        """
        self.left = most
        self._seen: set[int] = set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what the operations inside keep for their gradients, each memory once."""

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.left -= storage.nbytes()
            # Detached: what an operation has made would otherwise hold the operation, and
            # that the tensor.
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
            yield

"""What a sweep has left at the boundaries of blocks, on disk: a killed one goes on from there.

There is a file for each block, each shard of samples and each direction. It appears complete
or not at all, and proves that it belongs to the sweep. What fits into memory stays in the
system's cache of files; the rest is read once more from disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open

from ...ir import CachedFile, InputError, MachineError
from ...ir.arrays import UNREADABLE
from ...ir.sealed_file import read_seal

Kept = Literal["forward", "backward", "moments"]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Journal:
    """The files of one sweep.

    Attributes:
        folder: Where they are; it goes when the sweep is complete.
        key: Names everything that they depend on.
    """

    folder: Path
    key: str

    def has(self, way: Kept, block: int, shards: Iterable[int]) -> bool:
        """Tells whether what some shards left at a block can be read."""
        files = (self._file(way, block, shard) for shard in shards)
        return all(file.facts(_in_silence) is not None for file in files)

    def write(
        self,
        way: Kept,
        block: int,
        shard: int,
        samples: Sequence[Tensors],
        *,
        narrow: Collection[str] = (),
    ) -> int:
        """Keeps what the samples of a shard have left; returns the bytes of the file.

        Args:
            way: Values of a forward run, gradients of a backward one, or moments.
            block: Place of the block that left them.
            shard: Which shard.
            samples: Tensors by name, of each sample.
            narrow: Names of float32 tensors to keep as bfloat16, if they stay finite.
        """
        arrays: dict[str, np.ndarray] = {}
        types: dict[str, list[str]] = {}
        for at, tensors in enumerate(samples):
            for name, tensor in tensors.items():
                stored = tensor.detach().cpu().contiguous()
                if name in narrow and stored.dtype == torch.float32:
                    stored = _narrowed(stored)
                key = f"{at}/{name}"
                types[key] = [_name(stored.dtype), _name(tensor.dtype)]
                if stored.dtype == torch.bfloat16:  # which numpy does not have
                    stored = stored.view(torch.uint16)
                arrays[key] = stored.numpy()
        file = self._file(way, block, shard)
        facts = {"types": types, "samples": len(samples)}
        file.write(arrays, facts, lasting=False)
        return file.path.stat().st_size

    def read(
        self, way: Kept, block: int, shard: int, names: Collection[str] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Returns what the samples of a shard have left at a block, by name.

        Args:
            way: Values, gradients or moments.
            block: Place of the block.
            shard: Which shard.
            names: Which tensors to read; None for all.
        """
        path = self._file(way, block, shard).path
        try:
            facts = read_seal(path).facts
            types: dict[str, list[str]] = facts["types"]
            found: list[dict[str, torch.Tensor]] = [{} for _ in range(facts["samples"])]
            with safe_open(path, framework="numpy") as file:
                for key, (stored, wanted) in types.items():
                    at, _, name = key.partition("/")
                    if names is None or name in names:
                        tensor = torch.from_numpy(file.get_tensor(key))
                        tensor = tensor.view(getattr(torch, stored))
                        found[int(at)][name] = tensor.to(getattr(torch, wanted))
        except (InputError, *UNREADABLE) as error:
            raise MachineError(
                f"{path} can no longer be read: {error}", hint="run the command again"
            ) from error
        return found

    def forget(self, way: Kept, block: int, shards: Iterable[int]) -> None:
        """Removes what some shards left at a block."""
        for shard in shards:
            self._file(way, block, shard).path.unlink(missing_ok=True)

    def _file(self, way: Kept, block: int, shard: int) -> CachedFile:
        return CachedFile.of(self.folder, self.key, way, block, shard)


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """Returns bfloat16, unless a number would become infinite that was not."""
    narrow = tensor.bfloat16()
    return narrow if torch.equal(narrow.isfinite(), tensor.isfinite()) else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_silence(text: str) -> None:
    """Says nothing: a boundary that is broken is made again."""

"""Samples as the executor takes them: tensors, what waits at boundaries, and padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from ....ir import Feeds, InternalError
from ..pipeline.base import PassContext
from .boundaries import DiskTensors
from .devices import CPU
from .padding import Padding


class Values(dict[str, torch.Tensor]):
    """Tensors of one sample, by the name of the value.

    Attributes:
        padding: Tells which of their rows belong to tokens.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], padding: Padding) -> None:
        super().__init__(tensors)
        self.padding = padding

    def tokens(self, value: ir.Value) -> torch.Tensor:
        """Returns the rows of a value that belong to tokens: tokens x columns, float32."""
        tensor = self[str(value.name)].detach()
        flat = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1).float()
        return self._picked(flat, tensor.shape[:-1])

    def entries(self, value: ir.Value) -> torch.Tensor:
        """Returns the entries of a value that has one for each place, flat, of tokens only."""
        tensor = self[str(value.name)].detach()
        return self._picked(tensor.reshape(-1), tensor.shape)

    def real_rows(self, flat: torch.Tensor) -> torch.Tensor:
        """Returns those of ``flat``, one row for each place, that belong to tokens."""
        return self._picked(flat, flat.shape[:1])

    def _picked(self, flat: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        real = self.padding.real(tuple(places))
        return flat if real.all() else flat[torch.from_numpy(real.reshape(-1)).to(flat.device)]


class Sample:
    """One sample on its way through the blocks.

    Attributes:
        arrays: Its inputs, as the target runtime takes them.
        padding: Tells its tokens from padding.
        values: What blocks have left for later ones, by the name of the value.
        gradients: What reaches those values from later blocks, going back.
        device: Where its tensors are handed out, as torch names it.
    """

    def __init__(
        self,
        feeds: Feeds,
        padding: Padding,
        seed: int = 0,
        folder: Path | None = None,
        device: str = CPU,
    ) -> None:
        self.arrays, self.padding, self.device = feeds, padding, device
        self.values: MutableMapping[str, torch.Tensor] = {}
        self.gradients: MutableMapping[str, torch.Tensor] = {}
        if folder is not None:
            self.values = DiskTensors(folder / "values")
            self.gradients = DiskTensors(folder / "gradients")
        self._seed = seed

    def generator(self, place: int = 0) -> torch.Generator:
        """Returns the source of the random choices at one of the outputs that count."""
        return torch.Generator().manual_seed(self._seed + place * 1_000_000_007)

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Its inputs, on the device."""
        arrays = ((name, np.asarray(array, order="C")) for name, array in self.arrays.items())
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays}

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns an input, or what a block has left."""
        if name in self.inputs:
            return self.inputs[name]
        if name not in self.values:
            raise InternalError(f"{name!r} is read by a block before any has made it")
        return self.values[name].to(self.device)

    def clear(self) -> None:
        """Forgets what blocks have left."""
        self.values.clear()
        self.gradients.clear()


class Samples:
    """The samples of one run, each with its boundaries and its padding."""

    def __init__(
        self,
        feeds: Sequence[Feeds],
        mask: str | None = None,
        *,
        seed: int = 0,
        folder: Path | None = None,
        device: str = CPU,
    ) -> None:
        """Prepares the samples.

        Args:
            feeds: The inputs of each sample.
            mask: Name of the input that tells tokens from padding, if there is one.
            seed: Seed of the samples' generators.
            folder: Where boundaries lie on disk; None keeps them in memory.
            device: Where blocks run that are given them.
        """
        self._samples = [
            Sample(
                feed,
                Padding.of(feed, mask),
                seed * 1_000_003 + at,
                folder / f"{at:05d}" if folder is not None else None,
                device,
            )
            for at, feed in enumerate(feeds)
        ]

    @classmethod
    def of(
        cls, context: PassContext, feeds: Sequence[Feeds], *, on_disk: bool = False
    ) -> Samples:
        """Returns samples of the calibration; on disk, their boundaries are in the scratch."""
        assert context.calibration is not None
        folder = context.scratch / "boundaries" if on_disk else None
        return cls(
            feeds,
            context.calibration.mask,
            seed=context.seed,
            folder=folder,
            device=context.device,
        )

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

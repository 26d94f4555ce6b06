"""What is exported of a transformers model: a module by position, and an example for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

EXAMPLE_BATCH = 2
EXAMPLE_TOKENS = 16
EXAMPLE_PAST = 3


@dataclass(frozen=True)
class Example:
    """The example that a model is traced with.

    Attributes:
        inputs: Example arrays by the names that the graph's inputs get.
        dynamic: The axes of each that may vary, by name.
    """

    inputs: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, Mapping[int, Any]]

    def __or__(self, more: Example) -> Example:
        """Returns both, the inputs of ``more`` last."""
        return Example(
            {**self.inputs, **more.inputs},
            {**self.dynamic, **more.dynamic},
        )


@dataclass(frozen=True)
class Traced:
    """A module to export.

    Attributes:
        module: Takes the example's arrays by position and returns a tuple.
        example: What it is traced with.
        outputs: Names of what it returns.
    """

    module: torch.nn.Module
    example: Example
    outputs: tuple[str, ...]


class ByPosition(torch.nn.Module):
    """Calls a transformers model by keyword and returns a tuple of its main outputs."""

    def __init__(
        self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the chosen outputs."""
        given = dict(zip(self.inputs, arrays, strict=True))
        found = self.model(**given, return_dict=True)
        return tuple(found[name] for name in self.outputs)

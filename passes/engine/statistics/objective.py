"""The measure of divergence, and the gradient that samples its Fisher information.

For logits the loss is the log-likelihood of a label drawn from the model's own distribution,
which makes the second moment of its gradient the true Fisher information (not the empirical
one). For any other output it is ``<r, y> / (sigma sqrt(D))`` with ``r ~ N(0, I)``, the
Gauss-Newton form of half the relative squared error of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch

from ....ir import FLOAT_TYPES, UsageError, find_units
from ..execution.padding import Padding
from ..numerics.divergence import MASKED

Kind = Literal["logits", "regression"]
KINDS = ("auto", "logits", "regression")
_KEEPS_NUMBERS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Objective:
    """The outputs that count.

    Attributes:
        kind: ``logits`` or ``regression``.
        outputs: The graph outputs that it reads.
    """

    kind: Kind
    outputs: tuple[ir.Value, ...]

    def gradient(
        self, output: torch.Tensor, padding: Padding, generator: torch.Generator
    ) -> tuple[torch.Tensor, int]:
        """Samples the gradient of the loss with respect to one output.

        Args:
            output: Positions x channels in its last two axes.
            padding: Tells which positions count.
            generator: Source of the label or the direction.

        Returns:
            The gradient, zero at padding, and at how many places the loss is taken.
        """
        counts = padding.real(tuple(output.shape[:-1]))
        places = int(counts.sum())
        real = torch.from_numpy(counts).to(output.device)
        if self.kind == "regression":
            counted = (output.abs() < MASKED) & real[..., None]
            energy = output.float().where(counted, 0.0).square().mean()
            size = (energy * (real.numel() / max(places, 1))).sqrt().clamp_min(1e-12)
            drawn = torch.randn(output.shape, generator=generator).to(output.device)
            direction = drawn.where(counted, 0.0)
            scale = size * math.sqrt(_channels(output))
            return (direction / scale).to(output.dtype), places
        flat = output.reshape(-1, output.shape[-1])
        chances = flat.float().softmax(dim=-1)
        label = _draw(chances, generator)
        gradient = chances.neg_()
        gradient.scatter_add_(1, label, torch.ones_like(label, dtype=gradient.dtype))
        gradient *= real.reshape(-1, 1)
        return gradient.reshape(output.shape).to(output.dtype), places


def _channels(output: torch.Tensor) -> int:
    return max(output.shape[-1], 1) if output.ndim else 1


def _draw(chances: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns one label per row, drawn by inverting the cumulative distribution."""
    total = chances.cumsum(dim=1)
    drawn = torch.rand(len(chances), 1, generator=generator).to(chances.device)
    at = drawn * total[:, -1:]
    return torch.searchsorted(total, at).clamp_max_(chances.shape[1] - 1)


def _vocabularies(model: ir.Model, tokens: str | None) -> set[int]:
    """Returns the row counts of the tables that the token ids look up."""
    return {
        unit.shape[0]
        for unit in find_units(model)
        for use in unit.uses
        if use.kind == "lookup" and _origin(use.activation).name == tokens
    }


def _origin(value: ir.Value) -> ir.Value:
    """Returns what ``value`` was before its shape or type was changed."""
    node = value.producer()
    while node is not None and node.op_type in _KEEPS_NUMBERS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _last_dim(value: ir.Value) -> object:
    return value.shape[-1] if value.shape is not None and len(value.shape) else None


def choose_objective(model: ir.Model, tokens: str | None, kind: str) -> Objective:
    """Finds the outputs to measure on.

    An output is taken for logits when its last dimension is the size of the table that the
    token ids look up. Without such an output every float output counts as a regression.

    Raises:
        UsageError: ``kind`` is unknown, or logits are asked for and there are none.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown objective {kind!r}", hint="known: " + ", ".join(KINDS))
    floats = [value for value in model.graph.outputs if value.dtype in FLOAT_TYPES]
    if not floats:
        raise UsageError("the model has no float output to measure a divergence on")
    sizes = _vocabularies(model, tokens)
    logits = [value for value in floats if _last_dim(value) in sizes]
    if kind == "logits" and not logits:
        logits = floats[:1]
    if logits and kind != "regression":
        return Objective("logits", (logits[0],))
    return Objective("regression", tuple(floats))

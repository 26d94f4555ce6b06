"""Which products of a model run on kernels of codes, and which expand to floats at load."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir import Capabilities

KERNELS = ("auto", "always", "never")
_SMALL_MODEL = 1 << 23  # weights; as floats they take 32 MB
# Entries of a weight that stays in a processor's cache as floats, where a float product is as
# quick as one of codes, and does not round its activations.
_CACHED = 1 << 20
_ANY = 1 << 62


def capabilities(target: str, kernels: str, weights: int) -> Capabilities:
    """Returns what ``target`` can run, for a model of so many weights.

    Args:
        target: Name of the target.
        kernels: ``always`` takes kernels of codes wherever there are any, ``never`` none,
            and ``auto`` spares small weights of small models those that round activations.
        weights: Number of weights of the model.
    """
    from ..backend.onnxruntime.capabilities import load

    table = load(target)
    if kernels == "never":
        return replace(table, smallest_kernel=_ANY)
    rounds = any(table.rounds_activations(kernel.bits) for kernel in table.kernels)
    if kernels == "auto" and rounds and weights < _SMALL_MODEL:
        return replace(table, smallest_kernel=_CACHED)
    return table

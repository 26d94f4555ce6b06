"""Which products of a model run on kernels of codes, and which expand to floats at load."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir import Capabilities
    from .budget import Budget

KERNELS = ("auto", "always", "never")
_CPU = "CPUExecutionProvider"
_ANY_SIZE = 1 << 62  # entries: no weight is so large
# Weights of a model that fits into a processor's cache as floats, all of it or a layer at a
# time, where products of floats are about as quick as those of codes.
_TINY_MODEL, _SMALL_MODEL = 1 << 23, 1 << 26
_CACHED = 1 << 20  # entries of a weight that does, of a model with larger ones beside it
# Bits per weight from which on codes lose less than kernels do that round activations to int8.
_MANY_BITS = 6.0


def with_smallest(
    table: Capabilities,
    kernels: str,
    weights: int,
    budget: Budget,
    bits: float,
    *,
    saves_time: bool,
) -> Capabilities:
    """Returns a table that says how many entries a weight needs to be worth a kernel of codes.

    Args:
        table: What the target can run.
        kernels: ``always`` takes kernels of codes wherever there are any, ``never`` none.
            ``auto`` lets the weights of small models expand to floats, where kernels would
            round activations and save little time: of models below 8 M weights and, if they
            get 6 bits or more each, below 64 M. A file budget of fewer bits takes kernels,
            which have more widths.
        weights: Number of weights of the model.
        budget: What was asked for.
        bits: Bits per weight that it comes to.
        saves_time: Whether kernels of integers are offered to save time; then products of
            small models have such kernels too. Looking codes up saves none.
    """
    smallest = _smallest(table, kernels, weights, budget, bits)
    products = 0 if saves_time and kernels == "auto" else smallest
    # Float16 is for whole units; with few bits, rows of 4 and of 8 bits are worth more.
    half = table.half and bits >= _MANY_BITS
    return replace(table, smallest_kernel=products, smallest_lookup=smallest, half=half)


def as_asked(table: Capabilities, activations: object, prove_on: object) -> Capabilities:
    """Returns a table for what products read, and for where results are proven.

    Args:
        table: What the target can run.
        activations: What products read: ``fp8`` for weights and activations in floats.
        prove_on: ``cpu`` for a device that is not here.
    """
    float8 = activations == "fp8" and activations in table.activation_types
    table = replace(table, float8=float8)
    if prove_on != "cpu" or table.provider == _CPU:
        return table
    return replace(table, provider=_CPU, stands_in=True, deployed=table.deployed_provider)


def _smallest(
    table: Capabilities, kernels: str, weights: int, budget: Budget, bits: float
) -> int:
    """Returns the number for products and lookups alike, wherever time is not asked for."""
    rounds = any(table.rounds_activations(kernel.bits) for kernel in table.kernels)
    if kernels != "auto" or not rounds:
        return _ANY_SIZE if kernels == "never" else 0
    if bits >= _MANY_BITS:
        return _CACHED if weights < _SMALL_MODEL else 0
    return _CACHED if weights < _TINY_MODEL and not budget.expand else 0

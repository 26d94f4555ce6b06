"""The request to a method of allocation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import onnx_ir as ir

from ..engine.numerics.knapsack import Tried
from ..engine.pipeline.base import PassContext
from .decision import Candidate

T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class Asked(Generic[T]):
    """The request to a method.

    Attributes:
        model: The graph.
        candidates: The units to decide, in execution order.
        budget: Bytes that they may take together; None for no bound.
        settings: The method's own options.
        context: The context of the pass.
        harmful: Names of the groups of units that must not share an order of rows, as methods
            find out; several requests for one model may have them in common.
        tried: Told of every price of a byte that is tried.
    """

    model: ir.Model
    candidates: Sequence[Candidate]
    budget: int | None
    settings: T
    context: PassContext
    tried: Tried
    harmful: set[str] = field(default_factory=set)

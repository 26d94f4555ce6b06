"""The methods of allocation that exist: one line each, one module each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.pipeline.chosen_options import NoOptions
from . import budget, clusters, ratio, uniform
from .decision import Decision
from .method import Asked


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        decide: Decides every candidate once; where nothing fits the budget, the result is the
            smallest that the method can give.
        settings: The dataclass of its own options.
        bounded: Whether it decides by a budget.
    """

    decide: Callable[[Asked[Any]], list[Decision]]
    settings: type[Any] = NoOptions
    bounded: bool = True


METHODS: Mapping[str, Method] = {
    "budget": Method(budget.decide, budget.Settings),
    "uniform": Method(uniform.decide),
    "clusters": Method(clusters.decide, clusters.Settings, bounded=False),
    "ratio": Method(ratio.decide, ratio.Settings),
}
SETTINGS = {name: method.settings for name, method in METHODS.items()}

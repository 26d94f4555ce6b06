"""What a method of allocation is, and which ones exist: one line each, one module each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from ...ir import UsageError
from ...ir.text_form import did_you_mean
from ..engine.pipeline.base import PassContext
from .decision import Candidate, Decision

if TYPE_CHECKING:
    from .allocate_bits import AllocateBits


@dataclass(frozen=True)
class Method:
    """Where a method stands, and which options of the pass it looks at.

    Attributes:
        module: The module with its function ``decide``.
        takes: Options that it looks at, beside the budget.
        needs: One of these has to be given.
    """

    module: str
    takes: frozenset[str]
    needs: tuple[str, ...]


METHODS: Mapping[str, Method] = {
    "budget": Method("budget", frozenset({"granularity", "fold"}), ("budget",)),
    "uniform": Method("uniform", frozenset(), ("budget",)),
    "clusters": Method("clusters", frozenset({"bits"}), ("bits",)),
    "ratio": Method("ratio", frozenset({"bits", "share"}), ("share", "budget")),
}
_UNSET: Mapping[str, object] = {"granularity": "row", "fold": False, "bits": (), "share": None}


@dataclass(frozen=True)
class Asked:
    """What a method is asked.

    Attributes:
        model: The graph.
        candidates: The units to decide, in execution order.
        budget: Bytes that they may take together; None for no bound.
        settings: The pass, whose fields are what users can set.
        context: What the pass was given.
    """

    model: ir.Model
    candidates: Sequence[Candidate]
    budget: int | None
    settings: AllocateBits
    context: PassContext


class Decide(Protocol):
    """A method: which unit gets which option."""

    def __call__(self, asked: Asked) -> list[Decision]:
        """Decides every candidate once.

        Where nothing fits the budget, the result is the smallest that the method can give.
        """
        ...


def check_settings(settings: AllocateBits) -> None:
    """Refuses a method that does not exist, and options that it would ignore.

    Raises:
        UsageError: In these cases, and when it lacks an option.
    """
    name = settings.method
    if name not in METHODS:
        hint = did_you_mean(name, METHODS)
        raise UsageError(f"allocate-bits has no method {name!r}", hint=hint)
    method = METHODS[name]
    for option, unset in _UNSET.items():
        if option not in method.takes and getattr(settings, option) != unset:
            others = [one for one, other in METHODS.items() if option in other.takes]
            raise UsageError(
                f"allocate-bits{{method={name}}} has no use for {option}",
                hint=f"{option} belongs to method={' and method='.join(others)}",
            )
    if all(getattr(settings, option) in (None, ()) for option in method.needs):
        needed = " or ".join(method.needs)
        raise UsageError(f"allocate-bits{{method={name}}} needs {needed}")


def decide(asked: Asked) -> list[Decision]:
    """Decides by the method that the settings name."""
    module = METHODS[asked.settings.method].module
    found: Decide = import_module(f".{module}", __package__).decide
    return found(asked)

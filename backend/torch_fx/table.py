"""The table of lowerings: domain, op type and opset version to a function over tensors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, get_origin, get_type_hints

import onnx_ir as ir

Function = TypeVar("Function", bound=Callable[..., Any])

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Lowering:
    """One way to compute an operator.

    Attributes:
        function: Takes the node's inputs positionally and its attributes by keyword.
        since: The first opset version for which it is right.
        max_inputs: How many inputs it takes; ``None`` for any number.
        keywords: Names of attributes (snake case) and of facts that it asks for.
        ignored: Attributes that never change the result.
        returns_tuple: Whether it returns one tensor per output instead of a single tensor.
    """

    function: Callable[..., Any]
    since: int
    max_inputs: int | None
    keywords: frozenset[str]
    ignored: frozenset[str]
    returns_tuple: bool

    def refusal(self, node: ir.Node) -> str | None:
        """Why this lowering cannot compute ``node``; None when it can."""
        surplus = () if self.max_inputs is None else node.inputs[self.max_inputs :]
        if any(value is not None for value in surplus):
            return f"it has more than {self.max_inputs} inputs"
        for attribute in node.attributes.values():
            if attribute.ref_attr_name:
                return f"attribute '{attribute.name}' refers to a function's attribute"
            keyword = snake_case(attribute.name)
            if keyword not in self.keywords and keyword not in self.ignored:
                return f"attribute '{attribute.name}' is not known"
        return None


_TABLE: dict[tuple[str, str], list[Lowering]] = {}


def snake_case(name: str) -> str:
    """The keyword under which an attribute is passed: ``transA`` becomes ``trans_a``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def find(domain: str, op_type: str, version: int) -> Lowering | None:
    """The newest lowering that is not newer than ``version``."""
    domain = "" if domain == "ai.onnx" else domain
    known = _TABLE.get((domain, op_type), [])
    return max(
        (entry for entry in known if entry.since <= version),
        key=lambda entry: entry.since,
        default=None,
    )


def lowering(
    domain: str, *op_types: str, since: int = 1, ignores: Iterable[str] = ()
) -> Callable[[Function], Function]:
    """Register the decorated function for ``op_types`` from opset ``since`` on."""

    def register(function: Function) -> Function:
        entry = _describe(function, since, frozenset(ignores))
        for op_type in op_types:
            _TABLE.setdefault((domain, op_type), []).append(entry)
        return function

    return register


def plain(domain: str, op_type: str, function: Callable[..., Any], *, inputs: int = 1) -> None:
    """Register a torch function that takes ``inputs`` tensors and no attributes."""
    entry = Lowering(function, 1, inputs, frozenset(), frozenset(), returns_tuple=False)
    _TABLE.setdefault((domain, op_type), []).append(entry)


def _describe(function: Callable[..., Any], since: int, ignored: frozenset[str]) -> Lowering:
    parameters = inspect.signature(function).parameters.values()
    kinds = [parameter.kind for parameter in parameters]
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds
    positional = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return Lowering(
        function=function,
        since=since,
        max_inputs=None if variadic else positional,
        keywords=frozenset(parameter.name for parameter in parameters),
        ignored=ignored,
        returns_tuple=get_origin(get_type_hints(function)["return"]) is tuple,
    )

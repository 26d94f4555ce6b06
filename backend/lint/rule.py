"""Rules as data, and what breaks them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import onnx_ir as ir

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Rule:
    """Something that a runtime wants of a graph.

    Attributes:
        id: Its name.
        targets: The runtimes that want it.
        level: ``error``: refused, or computed wrongly; ``warning``: slow, or larger than it
            need be; ``note``: something to know.
        title: What is wrong where it is broken.
        why: What happens then.
        remedy: What would work.
        source: Where this is from; "measured" stands for measurements of this project.
        since: Version of the runtime that it was found to hold for, or first held for.
        fix: Whether ``fix`` repairs it.
    """

    id: str
    targets: tuple[str, ...]
    level: str
    title: str
    why: str
    remedy: str
    source: str
    since: str
    fix: bool = False


@dataclass(frozen=True)
class Finding:
    """A place where a rule is broken.

    Attributes:
        rule: The rule.
        node: The node; None where it is the graph as a whole.
        detail: What is found there.
    """

    rule: Rule
    node: ir.Node | None
    detail: str

    @property
    def place(self) -> str:
        """The node in words."""
        if self.node is None:
            return "the graph"
        return f"{self.node.op_type} {self.node.name!r}"


@cache
def load_rules() -> Mapping[str, Rule]:
    """Returns all rules by id, in the order of the file."""
    table = tomllib.loads(files(__package__).joinpath("rules.toml").read_text("utf-8"))
    return {
        name: Rule(name, tuple(entry.pop("targets")), **entry) for name, entry in table.items()
    }

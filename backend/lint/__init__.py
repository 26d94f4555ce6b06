"""What runtimes refuse, compute wrongly or run slowly, found in any graph."""

from .fixes import fix
from .linter import TARGETS, lint
from .rule import ERROR, NOTE, WARNING, Finding, Rule, load_rules

__all__ = [
    "ERROR",
    "NOTE",
    "TARGETS",
    "WARNING",
    "Finding",
    "Rule",
    "fix",
    "lint",
    "load_rules",
]

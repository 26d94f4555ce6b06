"""Holds a graph against the rules of a target."""

from __future__ import annotations

import onnx_ir as ir

from ...ir import UsageError
from ...ir.text_form import did_you_mean
from .checks import CHECKS
from .rule import ERROR, NOTE, WARNING, Finding, load_rules
from .view import View

_LEVELS = (ERROR, WARNING, NOTE)


def _targets() -> tuple[str, ...]:
    found = (target for rule in load_rules().values() for target in rule.targets)
    return tuple(dict.fromkeys(found))


TARGETS = _targets()


def lint(model: ir.Model, target: str, *, size: int = 0) -> list[Finding]:
    """Returns what ``target`` refuses, computes wrongly or runs slowly, the worst first.

    Args:
        model: A graph without functions.
        target: One of ``TARGETS``.
        size: Bytes of its files, as far as there are any.

    Raises:
        UsageError: There is no such target.
    """
    if target not in TARGETS:
        raise UsageError(f"no rules for target {target!r}", hint=did_you_mean(target, TARGETS))
    view = View.of(model, size)
    found = [
        Finding(rule, node, detail)
        for rule in load_rules().values()
        if target in rule.targets
        for node, detail in CHECKS[rule.id](view)
    ]
    return sorted(found, key=lambda one: _LEVELS.index(one.rule.level))

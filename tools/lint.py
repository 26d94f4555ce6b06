"""mpqc lint: what a runtime refuses, computes wrongly or runs slowly in any ONNX file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..backend.lint import ERROR, NOTE, WARNING, Finding, Rule, fix, lint, load_rules
from ..backend.onnxruntime.runner import open_session
from ..frontend.model_inputs import HeadShape, model_inputs, random_feed
from ..frontend.model_source import locate
from ..ir import (
    InputError,
    InternalError,
    MpqcError,
    UsageError,
    inline_functions,
    read_model,
    refuse_overlap,
    staged_folder,
    write_model,
)
from ..ir.atomic_file import replacing
from .inspection import model_bytes

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_PROVIDER = "CPUExecutionProvider"
_LENGTH = 16  # of axes that the inputs leave open, where a repair is tried out
_CLOSE = 1e-5
_MOST_SHOWN = 5  # findings of a rule, unless JSON is asked for


@dataclass(frozen=True)
class Linted:
    """What was found in a file.

    Attributes:
        model: The file.
        target: The runtime.
        findings: What is wrong with it; after a repair, what is left.
        repaired: What was repaired.
        output: The repaired file; None without a repair.
    """

    model: Path
    target: str
    findings: list[Finding]
    repaired: list[Finding]
    output: Path | None

    def count(self, level: str) -> int:
        """Returns how many findings have a level."""
        return sum(one.rule.level == level for one in self.findings)

    @property
    def by_rule(self) -> list[tuple[Rule, list[Finding]]]:
        """The findings of each rule, the worst first."""
        grouped = groupby(self.findings, key=lambda one: one.rule)
        return [(rule, list(some)) for rule, some in grouped]

    @property
    def errors(self) -> int:
        """The number of errors."""
        return self.count(ERROR)

    def lines(self) -> Iterator[str]:
        """Yields what to print: repairs, then rule by rule what is wrong, then the counts."""
        if self.repaired:
            rules = Counter(one.rule.id for one in self.repaired)
            told = ", ".join(f"{name} ({count})" for name, count in rules.items())
            yield from (f"repaired: {told}; written to {self.output}", "")
        for rule, found in self.by_rule:
            yield f"{rule.level} {rule.id}: {rule.title}"
            yield from (f"    {one.place}: {one.detail}" for one in found[:_MOST_SHOWN])
            if len(found) > _MOST_SHOWN:
                yield f"    and {len(found) - _MOST_SHOWN} more (--json shows all)"
            fixable = (
                " (--fix repairs it where it can)" if rule.fix and not self.output else ""
            )
            yield f"  why     {rule.why}"
            yield f"  remedy  {rule.remedy}{fixable}"
            yield from (f"  source  {rule.source} (since {rule.since})", "")
        counts = [(level, self.count(level)) for level in (ERROR, WARNING, NOTE)]
        told = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts)
        yield f"{told} for {self.target}"

    def facts(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        return {
            "model": str(self.model),
            "target": self.target,
            "errors": self.errors,
            "findings": [_facts(one) for one in self.findings],
            "repaired": [_facts(one) for one in self.repaired],
            "output": None if self.output is None else str(self.output),
        }

    def sarif(self) -> dict[str, Any]:
        """Returns the findings in the format that CI systems show (SARIF 2.1.0)."""
        from .. import __version__

        rules = [one for one in load_rules().values() if self.target in one.targets]
        places = {rule.id: at for at, rule in enumerate(rules)}
        driver = {
            "name": "mpqc lint",
            "version": __version__,
            "rules": [_sarif_rule(rule) for rule in rules],
        }
        results = [
            {
                "ruleId": one.rule.id,
                "ruleIndex": places[one.rule.id],
                "level": one.rule.level,
                "message": {"text": f"{one.place}: {one.rule.title} ({one.detail})"},
                "locations": [
                    {
                        "physicalLocation": {"artifactLocation": {"uri": self.model.name}},
                        "logicalLocations": [{"name": one.place}],
                    }
                ],
            }
            for one in self.findings
        ]
        run = {"tool": {"driver": driver}, "results": results}
        return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}

    def write_sarif(self, path: Path) -> None:
        """Writes the findings for a CI system."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(self.sarif(), indent=1).encode())


def _facts(one: Finding) -> dict[str, Any]:
    rule = one.rule
    return {
        "rule": rule.id,
        "level": rule.level,
        "node": None if one.node is None else str(one.node.name),
        "operator": None if one.node is None else one.node.op_type,
        "detail": one.detail,
        "title": rule.title,
        "why": rule.why,
        "remedy": rule.remedy,
        "source": rule.source,
        "since": rule.since,
        "fix": rule.fix,
    }


def _sarif_rule(rule: Rule) -> dict[str, Any]:
    described = {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": rule.level},
    }
    if rule.source.startswith("https://"):
        described["helpUri"] = rule.source
    return described


def lint_file(
    named: Path | str,
    target: str,
    *,
    repair: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
) -> Linted:
    """Looks at a model file, or at the one in a folder, and repairs it if that was asked for.

    Args:
        named: The file or folder.
        target: What it is to run on.
        repair: Whether to repair what can be repaired.
        output: The folder to make for the repaired file.
        overwrite: Replace an existing one.

    Raises:
        InputError: It is no readable ONNX model.
        UsageError: There is no such target, or a repair has no place to go.
        InternalError: The repaired graph computes something else.
    """
    if repair != (output is not None):
        raise UsageError("a repaired model needs a folder", hint="give --fix and --output DIR")
    source = locate(Path(named))
    if source.onnx is None:
        raise InputError(f"{named} holds no ONNX model", hint=f"run: mpqc export {named}")
    model, size = read_model(source.onnx), model_bytes(source.onnx)
    inline_functions(model)
    _name_nodes(model)
    found = lint(model, target, size=size)
    if output is None:
        return Linted(source.onnx, target, found, [], None)
    refuse_overlap(output, [source.onnx])
    with staged_folder(output, overwrite=overwrite) as stage:
        repaired = fix(model, target, size=size)
        write_model(model, stage / "model.onnx")
        size = model_bytes(stage / "model.onnx")
        _check_repair(source.onnx, stage / "model.onnx")
    made = output / "model.onnx"
    return Linted(made, target, lint(model, target, size=size), repaired, made)


def _name_nodes(model: ir.Model) -> None:
    """Names nodes without a name by their place, so that a finding says which one it is."""
    for at, node in enumerate(model.graph):
        node.name = node.name or f"#{at}"


def _check_repair(original: Path, repaired: Path) -> None:
    """Runs both files on noise, if the CPU runs the original at all."""
    random = np.random.default_rng(0)
    try:
        inputs = model_inputs(read_model(original))
        feed = random_feed(inputs, _LENGTH, random, HeadShape(None, None))
        for name, array in feed.items():
            if array.dtype in (np.int8, np.uint8):
                feed[name] = random.integers(0, 128, array.shape).astype(array.dtype)
        before = _outputs(original, feed)
    except MpqcError:
        return
    for wanted, found in zip(before, _outputs(repaired, feed), strict=True):
        close = wanted.dtype.kind != "f" or np.allclose(
            wanted, found, _CLOSE, _CLOSE, equal_nan=True
        )
        if not close:
            raise InternalError("the repaired graph does not compute what it did")


def _outputs(model: Path, feed: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
    with open_session(model, _PROVIDER, threads=1) as session:
        return list(session.run(feed).values())

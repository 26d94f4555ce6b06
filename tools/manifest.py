"""mpqc.json: what was asked, what was got, and how; written with the report, last of all."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .. import __version__
from ..frontend.model_source import Source
from ..ir import Budgeted, inline_functions, model_key, note_of
from ..ir.analysis.storage import Storage, stored
from ..passes.engine.execution.worker_facts import WORKERS
from ..passes.engine.pipeline.base import PassContext
from ..passes.engine.pipeline.instruments import TimePasses
from ..passes.engine.pipeline.pipeline import Pipeline
from .deployment.readme import README
from .inspection import left_in_float, model_bytes, unit_facts
from .option_fields import option_words
from .options import CompileOptions
from .report import render_report
from .unit_facts import UNITS

SCHEMA = "mpqc.result/1"
MANIFEST = "mpqc.json"
REPORT = "report.html"
_PASSING = ("reused", "seconds")
# What passes have decided about a unit: options by rows, or levels by channels.
_DECIDED = (
    "uses",
    "options",
    "levels",
    "channels",
    "outliers",
    "loss",
    "sensitivity",
    "score",
)
_PACKAGES = (
    "numba",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "scipy",
    "torch",
)


def input_facts(source: Source, model: ir.Model) -> dict[str, Any]:
    """Returns what identifies the model that went in, whose functions are inlined."""
    assert source.onnx is not None
    content = model_key(model)
    inline_functions(model)
    before = stored(model)
    return {
        "name": source.named.name,
        "file": source.onnx.name,
        "sha256": file_hash(source.onnx),
        "content": content,
        "weights": before.weights,
        "weight_bytes": before.bytes,
        "other_bytes": before.rest,
    }


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(
    stage: Path,
    file: Path,
    model: ir.Model,
    context: PassContext,
    pipeline: Pipeline,
    kept: dict[str, Any],
    timer: TimePasses,
    runs: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Returns the content of ``mpqc.json``. Only ``timings`` differs between equal runs.

    ``file`` is the model's, in the folder ``stage``.
    """
    after, budget = stored(model), note_of(model, Budgeted)
    given = dict(kept)
    entry = given.pop("input", {})
    said = {key: one for key, one in context.report.items() if key not in (UNITS, WORKERS)}
    return {
        "schema": SCHEMA,
        "model": file.relative_to(stage).as_posix(),
        "asked": given.pop("budget", {}),
        "got": _got(after, entry, budget),
        **left_in_float(after, model_bytes(file)),
        "predicted": budget.loss if budget is not None else None,
        "measured": measured_by(pipeline, context),
        "random_calibration": given.pop("random_calibration", False),
        "input": entry,
        "settings": given,
        "pipeline": str(pipeline),
        "command": _command(entry, kept, str(pipeline)),
        "units": _units(after, context.report.get(UNITS, [])),
        "passes": {key: _lasting(value) for key, value in said.items()},
        "versions": versions(),
        "files": {
            one.relative_to(stage).as_posix(): {
                "bytes": one.stat().st_size,
                "sha256": file_hash(one),
            }
            for one in sorted(stage.rglob("*"))
            if one.is_file()
        },
        "timings": {**_timings(timer), "runs": runs, **_passing(context.report)},
    }


def measured_by(pipeline: Pipeline, context: PassContext) -> dict[str, Any] | None:
    """Returns the report of the pass that compared the result with the original, if any."""
    reports = (context.report.get(one.name) for one in pipeline.passes if one.measures)
    return next((one for one in reports if one is not None), None)


def _lasting(facts: Any) -> Any:
    """Leaves out what depends on earlier runs, which would make equal results differ."""
    if not isinstance(facts, dict):
        return facts
    return {key: value for key, value in facts.items() if key not in _PASSING}


def _passing(report: dict[str, Any]) -> dict[str, Any]:
    """Returns what ``_lasting`` leaves out, and what workers did."""
    workers = {WORKERS: report[WORKERS]} if WORKERS in report else {}
    return workers | {
        f"{name} {key}": facts[key]
        for name, facts in report.items()
        if isinstance(facts, dict)
        for key in _PASSING
        if key in facts
    }


def _got(after: Storage, entry: dict[str, Any], budget: Budgeted | None) -> dict[str, Any]:
    """Returns the result's sizes; constants that the original lacked count too."""
    added = max(after.rest - entry.get("other_bytes", after.rest), 0)
    return {
        "bits": (after.bytes + added) * 8 / after.weights if after.weights else 0.0,
        "whole_file_bits": after.whole_file_bits,
        "resident_bits": after.resident_bits_per_weight,
        "weights": after.weights,
        "weight_bytes": after.bytes,
        "loose_float_bytes": after.loose_bytes,
        "other_bytes": after.rest,
        "allocated_bits": budget.got if budget is not None else None,
    }


def _units(after: Storage, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins what the graph tells about each unit with what passes had decided about it."""
    decided = {row["name"]: row for row in rows}
    joined = []
    for unit in after.units:
        facts, row = unit_facts(unit), decided.pop(unit.name, {})
        reason = facts.pop("reason") or row.get("reason", "")
        kept: dict[str, Any] = {key: row[key] for key in _DECIDED if key in row}
        if reason:
            kept["reason"] = reason
        joined.append({**facts, **kept})
    return joined + [row for row in decided.values() if "reason" in row]


def _command(entry: dict[str, Any], kept: dict[str, Any], pipeline: str) -> str:
    """Returns the command that makes this result again, with file names only."""
    budget = kept.get("budget", {})
    asked = budget.get("bits") if budget.get("bits") is not None else f"{budget.get('bytes')}B"
    bound = {"budget": None, "file_budget" if budget.get("file") else "budget": asked}
    values = {**kept, **bound}
    if kept.get("preset") is None:
        values["passes"] = pipeline
    words = option_words(CompileOptions, values)
    return shlex.join(["mpqc", "compile", str(entry.get("name", "MODEL")), *words])


def versions() -> dict[str, str]:
    """Returns the versions that a result may depend on."""
    found = {"mpqc": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _timings(timer: TimePasses) -> dict[str, Any]:
    seconds = timer.seconds()
    return {
        "passes": {name: round(value, 3) for name, value in seconds.items()},
        "total": round(sum(seconds.values()), 3),
        "peak_memory": max((one.peak for one in timer.timings), default=0),
    }


def plain_json(value: Any) -> Any:
    """Returns ``value`` with arrays, paths and numbers that JSON lacks made printable."""
    if isinstance(value, dict):
        return {str(key): plain_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(one) for one in value]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def write_manifest(stage: Path, facts: dict[str, Any], readme: str) -> None:
    """Writes both pages, then ``mpqc.json``, the mark of a complete result."""
    for name, text in ((README, readme), (REPORT, render_report(facts))):
        (stage / name).write_text(text, encoding="utf-8")
        size = (stage / name).stat().st_size
        facts["files"][name] = {"bytes": size, "sha256": file_hash(stage / name)}
    text = json.dumps(facts, indent=1, ensure_ascii=True, allow_nan=False)
    (stage / MANIFEST).write_text(text + "\n", encoding="utf-8")

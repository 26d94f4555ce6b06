"""What each command of the mpqc command does: call the API, print the result."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .manifest import plain_json
from .option_fields import options_in, resolved, utf8_path
from .options import (
    CompareOptions,
    CompileOptions,
    EvalOptions,
    ExportOptions,
    GenerateOptions,
    LintOptions,
    OptOptions,
    PlanOptions,
)
from .progress import choose_progress, plain
from .table import aligned

if TYPE_CHECKING:
    from ..ir.analysis.attention import Found
    from ..ir.analysis.loose_floats import LooseFloat

_FOUND = 1
_MACHINE = 4
_MOST_LOOSE = 20  # float constants outside units that have a line of their own


def run(chosen: argparse.Namespace) -> int:
    """Runs the chosen command; returns the exit code."""
    return _COMMANDS[chosen.command](chosen)


def _compile(chosen: argparse.Namespace) -> int:
    from .api import compile

    given = options_in(chosen, CompileOptions)
    result = compile(chosen.model, **given, progress=choose_progress())
    if chosen.json:
        facts = dataclasses.asdict(result)
        if "warning" in result.report:
            facts["warning"] = result.report["warning"]
        _print_json({**facts, "report": str(result.output / "mpqc.json")})
        return 0
    lines = [
        ("asked", f"{result.asked:.3f} stored bits per weight"),
        ("got", f"{result.got:.3f} ({result.resident_bits:.3f} in memory)"),
        ("whole file", f"{result.whole_file_bits:.3f} bits per weight, all floats counted"),
        ("weights", f"{result.weights:,}"),
        ("all files", f"{result.size / 1e6:.2f} MB"),
    ]
    if result.predicted is not None:
        lines.append(("predicted", f"{result.predicted:.4g}"))
    lines += [
        (what, f"{result.measured[key]:.4g}")
        for key, what in _MEASURED.items()
        if result.measured.get(key) is not None
    ]
    lines += _time_lines(result.report)
    if result.report["random_calibration"]:
        lines.append(("warning", "calibrated on random noise"))
    if "warning" in result.report:
        lines.append(("warning", result.report["warning"]))
    _print_table([*lines, ("written to", str(result.output))])
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    from .api import plan
    from .planning.page import page

    found = plan(chosen.model, **options_in(chosen, PlanOptions), progress=choose_progress())
    if chosen.json:
        _print_json(dataclasses.asdict(found))
    else:
        print("\n".join(map(plain, page(found))))
    return 0


def _time_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what runs take beside the original's, by workload."""
    lines = []
    for name, run in report["timings"].get("runs", {}).items():
        ratio = run["result"] / max(run["original"], 1e-9)
        predicted = run.get("predicted")
        more = f", {predicted / run['original']:.2f} predicted" if predicted else ""
        shown = (
            f"{run['result']:.4g} ms, the original {run['original']:.4g} ({ratio:.2f}{more})"
        )
        lines.append((f"time of a {name}, one thread", shown))
    return lines


_MEASURED = {
    "kl": "measured KL, nats per token",
    "top1": "same first choice",
    "relative_error": "relative error of outputs",
    "cosine": "cosine similarity of outputs",
}


def _export(chosen: argparse.Namespace) -> int:
    from .export import export_folder

    progress = choose_progress()
    progress.say(f"exporting {chosen.folder}")
    options = resolved(ExportOptions(**options_in(chosen, ExportOptions)))
    folder = utf8_path(chosen.folder)
    result = export_folder(
        folder,
        options.output,
        overwrite=options.overwrite,
        operators=options.operators,
        progress=progress,
    )
    if chosen.json:
        _print_json(dataclasses.asdict(result))
        return 0
    size = sum(result.files.values())
    _print_table(
        [
            ("exporter", result.route),
            ("size", f"{size / 1e6:.2f} MB"),
            ("written to", str(result.output)),
        ]
    )
    return 0


def _opt(chosen: argparse.Namespace) -> int:
    from .resume import opt

    options = resolved(OptOptions(**options_in(chosen, OptOptions)))
    result = opt(
        utf8_path(chosen.dump),
        options.passes,
        output=options.output,
        overwrite=options.overwrite,
        device=options.device,
        watch=options,
        progress=choose_progress(),
        workers=options.workers,
    )
    shown = result.listing() if options.print or options.output is None else None
    if chosen.json:
        _print_json(
            {
                "pipeline": result.pipeline,
                "output": result.output,
                "graph": shown,
                "passes": result.report,
            }
        )
    elif shown is not None:
        print(shown, end="" if shown.endswith("\n") else "\n")
    else:
        _print_table([("passes", result.pipeline), ("written to", str(result.output))])
    return 0


def _lint(chosen: argparse.Namespace) -> int:
    from .lint import lint_file

    options = resolved(LintOptions(**options_in(chosen, LintOptions)))
    linted = lint_file(
        utf8_path(chosen.model),
        options.target,
        repair=options.fix,
        output=options.output,
        overwrite=options.overwrite,
    )
    if options.sarif is not None:
        linted.write_sarif(options.sarif)
    if chosen.json:
        _print_json(linted.facts())
    else:
        print("\n".join(map(plain, linted.lines())))
    return _FOUND if linted.errors else 0


def _inspect(chosen: argparse.Namespace) -> int:
    from .inspection import inspect_file, outside_warning

    found = inspect_file(utf8_path(chosen.model))
    if chosen.json:
        _print_json(found.facts())
        return 0
    storage = found.storage
    rows = [
        (
            "unit",
            "used as",
            "rows x columns",
            "rows by bits",
            "bits",
            "bytes",
            "in float because",
        )
    ]
    for unit in storage.units:
        widths = ", ".join(f"{bits:g}: {rows_}" for bits, rows_ in unit.widths)
        shape = f"{unit.rows} x {unit.columns}"
        kinds = ", ".join(unit.kinds)
        size = f"{unit.bytes:,}"
        rows.append(
            (unit.name, kinds, shape, widths, f"{unit.bits:.3f}", size, unit.why_float)
        )
    _print_table(rows)
    print()
    _print_table(
        [
            ("stored bits per weight", f"{storage.bits_per_weight:.4f}"),
            ("with all floats of the file", f"{storage.whole_file_bits:.4f}"),
            ("in memory, bits per weight", f"{storage.resident_bits_per_weight:.4f}"),
            ("weights", f"{storage.weights:,}"),
            ("bytes of weights", f"{storage.bytes:,}"),
            ("bytes of loose floats", f"{storage.loose_bytes:,}"),
            ("bytes of other constants", f"{storage.rest - storage.loose_bytes:,}"),
            ("bytes of the file and its data", f"{found.file_bytes:,}"),
        ]
    )
    _print_loose(storage.loose)
    if warning := outside_warning(storage, found.file_bytes):
        print(f"\nwarning: {plain(warning)}")
    _print_attention(found.attention)
    return 0


def _print_loose(loose: Sequence[LooseFloat]) -> None:
    """Prints the largest float constants outside all units, and the sum of the others."""
    if not loose:
        return
    rest = loose[_MOST_LOOSE:]
    rows = [("left in float, no unit", "bytes", "because")]
    rows += [(one.name, f"{one.bytes:,}", one.why) for one in loose[:_MOST_LOOSE]]
    if rest:
        rows.append((f"{len(rest)} more", f"{sum(one.bytes for one in rest):,}", ""))
    print()
    _print_table(rows)


def _print_attention(found: Found) -> None:
    """Prints what was recognised as attention, and what was not and why."""
    rows = [("attention", "queries, keys, values", "output", "heads", "mask", "positions")]
    for one in found.bound:
        made = ", ".join(dict.fromkeys(part.unit.name for part in one.projections[:3]))
        heads = f"{one.heads} x {one.head_size}"
        if one.kv_heads != one.heads:
            heads += f", keys and values {one.kv_heads}"
        mask = "causal" if one.causal else "yes" if one.masked else "none"
        turns = f"rotary, {one.rope}" if one.rope else ""
        rows.append((str(one.node.name), made, one.output.unit.name, heads, mask, turns))
    if found.bound:
        print()
        _print_table(rows)
    if found.unmatched:
        print()
        refused = [(str(one.node.name), one.why) for one in found.unmatched]
        _print_table([("no attention", "because"), *refused])


def _eval(chosen: argparse.Namespace) -> int:
    from .evaluate import evaluate
    from .runtimes import Runtime

    options = resolved(EvalOptions(**options_in(chosen, EvalOptions)))
    found = evaluate(
        utf8_path(chosen.original),
        utf8_path(chosen.result),
        options.text,
        samples=options.samples,
        sequence_length=options.sequence_length,
        runtime=Runtime(options.runtime, options.target, options.exact),
        progress=choose_progress(),
    )
    if chosen.json:
        _print_json(found.facts())
        return 0
    _print_table(
        [(key.replace("_", " "), _shown(value)) for key, value in found.facts().items()]
    )
    return 0


def _compare(chosen: argparse.Namespace) -> int:
    from .comparison import compare

    given = options_in(chosen, CompareOptions)
    found = compare(chosen.model, **given, progress=choose_progress())
    problem = found.problem()
    if chosen.json:
        facts = {"output": found.output, "given": found.given, "points": found.points}
        _print_json(
            {**facts, "ok": problem is None, **({"error": problem} if problem else {})}
        )
    else:
        print(found.table(), end="")
    if problem is not None:
        print(f"mpqc: {plain(problem['message'])}", file=sys.stderr)
    return found.exit_code


def _generate(chosen: argparse.Namespace) -> int:
    from .generate import generate

    options = resolved(GenerateOptions(**options_in(chosen, GenerateOptions)))
    text = ""
    for piece in generate(utf8_path(chosen.folder), chosen.prompt, options.max_tokens):
        text += piece
        if not chosen.json:
            print("\n".join(map(plain, piece.split("\n"))), end="", flush=True)
    if chosen.json:
        _print_json({"prompt": chosen.prompt, "text": text})
    else:
        print()
    return 0


def _passes(chosen: argparse.Namespace) -> int:
    from ..passes.engine.pipeline.registry import all_passes

    listed: list[dict[str, Any]] = [
        {
            "name": one.name,
            "summary": (one.__doc__ or "").strip().splitlines()[0],
            "options": {
                field.name.replace("_", "-"): _default(field)
                for field in dataclasses.fields(one)
            },
        }
        for one in all_passes()
    ]
    if chosen.json:
        _print_json({"passes": listed})
        return 0
    for one in listed:
        print(f"{one['name']}\n    {one['summary']}")
        for name, default in one["options"].items():
            print(f"    {name}={default}")
    return 0


def _presets(chosen: argparse.Namespace) -> int:
    from .pipelines import PRESETS

    if chosen.json:
        _print_json({"presets": {name: one.summary for name, one in PRESETS.items()}})
    else:
        _print_table([(name, one.summary) for name, one in PRESETS.items()])
    return 0


def _default(field: dataclasses.Field[Any]) -> str:
    from ..ir.text_form import print_value

    if field.default is dataclasses.MISSING:
        return "(required)"
    return print_value(field.default)


def _targets(chosen: argparse.Namespace) -> int:
    from .targets import find_targets, overview

    found = find_targets(chosen.target)
    if chosen.json:
        _print_json({"targets": [one.facts() for one in found]})
    else:
        lines = overview(found) if chosen.target is None else found[0].lines()
        print("\n".join(map(plain, lines)))
    return 0


def _doctor(chosen: argparse.Namespace) -> int:
    from .costs import measure_here
    from .doctor import examine

    if chosen.measure:
        measure_here(choose_progress())
    found = examine(chosen.probe)
    problem = found.problem()
    if chosen.json:
        error = {"error": problem} if problem else {}
        _print_json({**found.facts(), "ok": problem is None, **error})
    else:
        print("\n".join(map(plain, found.lines())))
    if problem is None:
        return 0
    print(f"mpqc: {plain(problem['message'])}", file=sys.stderr)
    print(f"      {plain(problem['hint'])}", file=sys.stderr)
    return _MACHINE


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _print_json(facts: dict[str, Any]) -> None:
    print(json.dumps({"ok": True, **plain_json(facts)}))


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    print("\n".join(aligned(rows)))


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "compile": _compile,
    "plan": _plan,
    "export": _export,
    "opt": _opt,
    "inspect": _inspect,
    "lint": _lint,
    "eval": _eval,
    "compare": _compare,
    "generate": _generate,
    "passes": _passes,
    "presets": _presets,
    "targets": _targets,
    "doctor": _doctor,
}

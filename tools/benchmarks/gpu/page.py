"""What was measured on a device, as the tables of docs/targets.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...comparison.kept import Kept
from ...comparison.markdown import markdown, number
from .kit import FORMS, HALF
from .measuring import ratios
from .steps import COMPILE, COMPILE_SHAPE, DEVICE, ENGINE, FAILED, FILE, IN_RUNTIME, ROWS

RESULTS = Path(__file__).with_name("results.json")
TITLE = "## Measured on a GPU"
_GIGA, _MEGA = 1e9, 1e6
_COMMANDS = """```console
$ python -m mpqc.tools.benchmarks gpu prepare -o build/gpu    # here
$ python -m mpqc.tools.benchmarks gpu run build/gpu -o results.json
$ python -m mpqc.tools.benchmarks gpu table results.json
```
"""
_ABSENT = (
    "Nothing of this page was run on a GPU, neither a row of `ort-cuda` nor an engine of"
    " TensorRT: there was none yet. Where there is one, this does it:"
)


def section(path: Path = RESULTS) -> str:
    """Returns the section of docs/targets.md: what was measured, or how to measure it."""
    if not path.is_file():
        return f"{TITLE}\n\n{_ABSENT}\n\n{_COMMANDS}"
    return f"{TITLE}\n\n{page(path)}\n{_COMMANDS}"


def page(path: Path) -> str:
    """Returns the tables of a file that ``gpu run`` wrote.

    Raises:
        InputError: It is no such file.
    """
    kept = Kept(path)
    facts = kept.facts
    parts = [
        _device(facts.get(DEVICE, {}), kept.given),
        _files(facts),
        _engine(facts),
        _compiled(facts),
        _rows(facts.get(ROWS, {})),
        _failures(facts),
    ]
    return "\n".join(part for part in parts if part)


def _device(found: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Returns in words what everything ran on, and which model."""
    if found.get("dry_run"):
        where = "**A dry run on the CPU**, which says nothing of a GPU."
    else:
        gpus = ", ".join(
            f"{one['name']} (compute capability {one['capability']},"
            f" {one['memory'] / _GIGA:.0f} GB)"
            for one in found.get("gpus", ())
        )
        where = f"{gpus or 'Unknown device'}; driver {found.get('driver') or 'unknown'}."
    used = ", ".join(
        f"{title} {one['version']}"
        for title, one in found.get("packages", {}).items()
        if one["version"]
    )
    model = f"Model: {given.get('model')}, at {given.get('budget')} bits a weight."
    return " ".join([where, f"{used}." if used else "", model]) + "\n"


def _files(facts: Mapping[str, Any]) -> str:
    """Returns the table of files in ONNX Runtime: distance from the CPU, and time."""
    done = {
        name: facts[f"{FILE}{name}"]
        for name in FORMS
        if "runs" in facts.get(f"{FILE}{name}", {})
    }
    if IN_RUNTIME in facts and "runs" in facts[IN_RUNTIME]:
        done["tensorrt, in its provider"] = facts[IN_RUNTIME]
    if not done:
        return ""
    runs = list(next(iter(done.values()))["runs"])
    base = done.get(HALF, {}).get("runs", {})
    head = ["file, in ONNX Runtime", "nodes on the CPU"]
    for run in runs:
        head += [f"{run}: largest difference", "KL", "ms", f"to {HALF}"]
    lines = []
    for name, one in done.items():
        fallen = ", ".join(f"{count} {kind}" for kind, count in one["fallen_back"].items())
        cells = [name, fallen or "0"]
        for run in runs:
            cells += _run_cells(one["runs"][run], ratios(one["runs"], base).get(run))
        lines.append(cells)
    return markdown(head, lines)


def _run_cells(facts: Mapping[str, Any], ratio: float | None) -> list[str]:
    return [
        facts.get("shape") or number(facts.get("largest"), ".3g"),
        number(facts.get("kl"), ".2g"),
        number(facts.get("milliseconds"), ".3g"),
        number(ratio, ".2f"),
    ]


def _engine(facts: Mapping[str, Any]) -> str:
    """Returns what became of the graph for TensorRT there."""
    found = facts.get(ENGINE, {})
    if "runs" not in found:
        return ""
    base = facts.get(f"{FILE}{HALF}", {}).get("runs", {})
    ratio = ratios(found["runs"], base)
    head = ["run, in TensorRT", "largest difference", "KL", "ms", f"to {HALF}"]
    lines = [[run, *_run_cells(one, ratio.get(run))] for run, one in found["runs"].items()]
    types = ", ".join(f"{count} in {kind}" for kind, count in found["products"].items())
    told = (
        f"The engine took {found['build']:.0f} s to build and has {found['layers']} layers;"
        f" products: {types or 'none that it names'}. Differences are from the graph as the"
        " standard has it.\n"
    )
    return f"{markdown(head, lines)}\n{told}"


def _compiled(facts: Mapping[str, Any]) -> str:
    """Returns the table of compilations: seconds of each pass, and the device's memory."""
    done = {
        name: one
        for name, one in facts.items()
        if name.startswith(COMPILE) and "passes" in one
    }
    if not done:
        return ""
    passes = list(dict.fromkeys(name for one in done.values() for name in one["passes"]))
    head = ["seconds", *(_compiled_title(name, one) for name, one in done.items())]
    lines = [
        [name, *(number(one["passes"].get(name), ".1f") for one in done.values())]
        for name in passes
    ]
    lines.append(["in all", *(number(one["wall"], ".1f") for one in done.values())])
    lines.append(
        ["GB of the device", *(number(_giga(one["memory"]), ".2f") for one in done.values())]
    )
    return markdown(head, lines)


def _compiled_title(name: str, one: Mapping[str, Any]) -> str:
    what = name.removeprefix(COMPILE_SHAPE) if name != COMPILE else "the model"
    return f"{what}: {one['weights'] / _MEGA:.0f} M weights on {one['device']}"


def _giga(size: int | None) -> float | None:
    return None if size is None else size / _GIGA


def _rows(found: Mapping[str, Any]) -> str:
    """Returns the table of what became of each row of ort-cuda."""
    rows = found.get("rows", ())
    if not rows:
        return ""
    head = ["row of ort-cuda", "used", "verdict", "error", "time of a token, float32 takes 1"]
    return markdown(head, [list(_row_cells(one)) for one in rows])


def _row_cells(one: Mapping[str, Any]) -> Iterator[str]:
    why = f": {one['detail']}" if one["detail"] else ""
    yield one["row"]
    yield "yes" if one["used"] else "no"
    yield f"{one['verdict']}{why}"
    yield number(one["error"], ".1e")
    yield number(one["time"], ".2f")


def _failures(facts: Mapping[str, Any]) -> str:
    """Returns a line for each step that could not be done."""
    failed = {name: one[FAILED] for name, one in facts.items() if FAILED in one}
    return "".join(f"- {name} could not be done: {why}\n" for name, why in failed.items())

"""What time costs in quality: one model compiled under several bounds on its time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...ir import InfeasibleBudget, temporary_folder
from ..api import compile
from ..comparison.kept import Kept
from ..comparison.markdown import markdown
from ..option_fields import add_options as add_shared
from ..option_fields import options_in
from ..options import CompileOptions
from ..progress import choose_progress
from .results import show

_SHARED = (
    "budget",
    "preset",
    "calibration",
    "samples",
    "sequence_length",
    "target",
    "machine",
)
_FREE = 1000.0  # a bound that nothing meets, so that time plays no part


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="exported folder or file")
    parser.add_argument(
        "--latencies", metavar="X", type=float, nargs="+", default=[1.0, 0.95, 0.9]
    )
    parser.add_argument("-o", "--output", metavar="DIR", type=Path)
    add_shared(parser, CompileOptions, _SHARED)


def run(chosen: argparse.Namespace) -> None:
    """Compiles without a thought of time, by default, and under every bound."""
    given = options_in(chosen, CompileOptions)
    asked = {
        "any time": _FREE,
        "default": None,
        **{f"{one:g}": one for one in chosen.latencies},
    }
    found: dict[str, dict[str, Any]] = {}
    with temporary_folder() as folder:
        for name, latency in asked.items():
            progress = choose_progress()
            progress.say(f"--latency: {name}")
            try:
                result = compile(
                    chosen.model,
                    **{**given, "output": folder / "out", "latency": latency},
                    overwrite=True,
                    progress=progress,
                )
            except InfeasibleBudget as error:
                found[name] = {"why": error.message}
                continue
            found[name] = {
                "predicted": result.predicted,
                "measured": result.measured,
                "runs": result.report["timings"]["runs"],
            }
    if chosen.output is not None:
        Kept(chosen.output / "latency.json").put("latency", found)
    show(chosen.output, "latency", table(found))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Returns loss and the times relative to the original's, predicted and measured."""
    names = sorted({name for one in found.values() for name in one.get("runs", {})})
    rows = []
    for name, one in found.items():
        if "why" in one:
            rows.append([name, one["why"], *[""] * (1 + len(names))])
            continue
        measured = one["measured"].get("kl", one["measured"].get("divergence"))
        cells = []
        for run_name in names:
            run = one["runs"][run_name]
            predicted = run.get("predicted", run["original"]) / run["original"]
            cells.append(f"{run['result'] / run['original']:.2f} ({predicted:.2f})")
        rows.append([name, f"{one['predicted']:.4g}", f"{measured:.4g}", *cells])
    heads = [f"time of a {name} (predicted)" for name in names]
    return markdown(["--latency", "predicted loss", "measured", *heads], rows)

"""How well the prediction holds: for whole budgets, and for one unit at a time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...ir import Option, Sensitivity, note_of, quantizable, read_model
from ...passes.engine.pipeline.base import Pass
from ...passes.engine.pipeline.pipeline import Pipeline
from ..comparison.chart import Chart
from ..comparison.files import write_whole
from ..comparison.folder import RESULTS
from ..comparison.kept import Kept
from ..comparison.markdown import markdown
from ..comparison.point import MEASURED
from ..compilation import Compilation
from ..option_fields import add_options as add_shared
from ..options import CalibrationOptions
from ..pipelines import MEASURED_APART, PREDICTED, passes_of
from ..stats_cache import stats_folder
from .job import job
from .results import given_in, show

_WIDTHS = (2, 4)
_SHARED = ("calibration", "samples", "sequence_length", "target")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="exported folder or file")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="best that of `mpqc compare`: its points are shown too",
    )
    parser.add_argument("--units", metavar="N", type=int, default=60, help="to measure (60)")
    parser.add_argument("--kl-samples", metavar="N", type=int, default=2)
    add_shared(parser, CalibrationOptions, _SHARED)


def run(chosen: argparse.Namespace) -> None:
    """Compares; what has been measured before is not measured again."""
    common = given_in(chosen, ("model", *_SHARED))
    kept = Kept(chosen.output / "prediction.json", common)
    name = f"{chosen.units} units, {chosen.kl_samples} samples"
    if name not in kept.facts:
        with job(chosen, stats_folder(None, print) or chosen.output / "stats") as work:
            kept.put(name, {"pairs": pairs(work, chosen.units, chosen.kl_samples)})
    found = kept.facts[name]["pairs"]
    _draw(found, chosen.output / "prediction.svg")
    points = Kept(chosen.output / RESULTS).facts
    show(chosen.output, "prediction", units_table(found) + "\n" + budgets_table(points))


def pairs(work: Compilation, units: int, samples: int) -> list[dict[str, Any]]:
    """Returns predicted and measured divergence of single units at every width."""
    predicted = _totals(work, passes_of(PREDICTED))
    measured = _totals(work, passes_of(MEASURED_APART, units=units, samples=samples))
    return [
        {"unit": unit, "option": option, "predicted": value, "measured": other}
        for (unit, option), value in predicted.items()
        # A unit that was not measured keeps what is predicted.
        if (other := measured[unit, option]) != value
    ]


def _totals(work: Compilation, passes: tuple[Pass, ...]) -> dict[tuple[str, str], float]:
    model = read_model(work.original)
    Pipeline(passes).run(model, work.context())
    return {
        (note.unit, option): total
        for note in _notes(model)
        for option, total in zip(note.options, note.total, strict=True)
    }


def _notes(model: ir.Model) -> list[Sensitivity]:
    notes = (note_of(unit.notes, Sensitivity) for unit in quantizable(model))
    return [note for note in notes if note is not None]


def units_table(found: list[dict[str, Any]]) -> str:
    """Returns rank correlation and typical ratio for the narrow widths, then for all."""
    chosen = {f"{bits} bits": [p for p in found if _bits(p) == bits] for bits in _WIDTHS}
    both = [pair for some in chosen.values() for pair in some]
    rows = [
        _agreement(name, some)
        for name, some in {**chosen, "both": both, "all widths": found}.items()
        if len(some) > 2
    ]
    header = ["one unit at a time", "pairs", "rank correlation", "median ratio"]
    return markdown([*header, "within 2x"], rows)


def _bits(pair: dict[str, Any]) -> int:
    return Option.parse(pair["option"]).bits


def _agreement(name: str, some: list[dict[str, Any]]) -> list[str]:
    import numpy as np
    from scipy.stats import spearmanr

    predicted = np.array([pair["predicted"] for pair in some])
    measured = np.array([pair["measured"] for pair in some])
    rank = float(spearmanr(predicted, measured).statistic)
    ratio = predicted / np.maximum(measured, 1e-30)
    near = np.mean((ratio > 0.5) & (ratio < 2))
    return [name, str(len(some)), f"{rank:.3f}", f"{np.median(ratio):.2f}", f"{near:.0%}"]


def budgets_table(points: dict[str, Any]) -> str:
    """Returns predicted and measured divergence of the points of `mpqc compare`."""
    rows = [
        [
            name,
            f"{one['predicted']:.4f}",
            f"{one['kl']:.4f}",
            f"{one['predicted'] / max(one['kl'], 1e-30):.2f}",
        ]
        for name, one in sorted(points.items(), key=lambda item: item[1]["budget"])
        if one["status"] == MEASURED and one.get("predicted") is not None and "kl" in one
    ]
    if not rows:
        return "No budgets: run `mpqc compare` with the same output folder first.\n"
    return markdown(["whole model", "predicted", "measured", "ratio"], rows)


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    for pair in found:
        points = series.setdefault(f"{_bits(pair)} bits", [])
        points.append((pair["measured"], pair["predicted"]))
    chart = Chart("measured, nats per token", "predicted", log_x=True, diagonal=True)
    write_whole(path, chart.draw(series))

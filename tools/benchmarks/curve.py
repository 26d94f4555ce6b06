"""Quality against size: budgets, and uniform widths through the same code."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..progress import choose_progress
from .chart import Chart
from .results import Kept, given_in, markdown, number, show

BUDGETS = (2.5, 3.0, 3.5, 4.0, 4.5, 6.0)
UNIFORM = (2, 4, 8)
_GROUP = 64
_COMMON = (
    *("model", "text", "calibration", "samples", "eval_samples", "sequence_length"),
    *("target", "uniform_refinements"),
)
_COLUMNS = (
    ("stored bits", "bits", ".3f"),
    ("bytes", "result_bytes", ","),
    ("KL", "kl", ".4f"),
    ("perplexity", "result_perplexity", ".2f"),
    ("top-1", "top1", ".1%"),
    ("relative error", "relative_error", ".4f"),
    ("cosine", "cosine", ".4f"),
    ("predicted", "predicted", ".4f"),
)
_ROOM = 1.08  # for what a uniform width stores beside codes and scales; the next is far away
_UNIFORM = (
    "normalize,partition-blocks,calibrate,annotate-sensitivity{{groups=[{group}]}},"
    "allocate-bits{{budget=1.0, uniform=true}},quantize-weights{{refinements={rounds}}},"
    "lower-matmul-nbits,verify-numerics"
)


@dataclass(frozen=True)
class Setting:
    """One point of the curve.

    Attributes:
        name: Its name in tables and files.
        budget: Stored bits per weight that are allowed.
        passes: The pipeline; None for the default method.
    """

    name: str
    budget: float
    passes: str | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="exported folder or file")
    parser.add_argument("--text", metavar="PATH", type=Path, nargs="+", required=True)
    parser.add_argument("--calibration", metavar="PATH", type=Path, nargs="+", default=[])
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True)
    parser.add_argument("--budgets", metavar="B", type=float, nargs="*", default=BUDGETS)
    parser.add_argument("--uniform", metavar="BITS", type=int, nargs="*", default=UNIFORM)
    parser.add_argument(
        "--uniform-refinements", metavar="N", type=int, default=3, help="0 is plain GPTQ"
    )
    parser.add_argument("--samples", metavar="N", type=int, help="to calibrate on (64)")
    parser.add_argument("--eval-samples", metavar="N", type=int, default=8)
    parser.add_argument("--sequence-length", metavar="L", type=int, default=512)
    parser.add_argument("--target", metavar="NAME", default="ort-cpu")
    parser.add_argument("--keep", action="store_true", help="keep the compiled folders")


def run(chosen: argparse.Namespace) -> None:
    """Measures every point that is not in the output folder yet; shows them all."""
    kept = Kept(chosen.output / "curve.json", given_in(chosen, _COMMON))
    progress = choose_progress()
    for setting in settings(chosen):
        if setting.name in kept.facts:
            progress.say(f"{setting.name}: measured already")
            continue
        progress.say(f"{setting.name}: compiling")
        kept.put(setting.name, measure(setting, chosen))
        write(kept.facts, chosen.output)
    show(chosen.output, "curve", table(kept.facts))


def settings(chosen: argparse.Namespace) -> Iterator[Setting]:
    """Yields the points asked for."""
    for budget in chosen.budgets:
        yield Setting(f"{budget:g} bits", budget)
    for bits in chosen.uniform:
        passes = _UNIFORM.format(group=_GROUP, rounds=chosen.uniform_refinements)
        name = f"uniform {bits}g{_GROUP}"
        yield Setting(name, (bits + 16 / _GROUP) * _ROOM, passes)


def measure(setting: Setting, chosen: argparse.Namespace) -> dict[str, Any]:
    """Compiles and evaluates one point."""
    from ..api import compile
    from ..evaluate import evaluate

    folder = chosen.output / setting.name.replace(" ", "-")
    result = compile(
        chosen.model,
        budget=setting.budget,
        output=folder,
        target=chosen.target,
        calibration=chosen.calibration,
        samples=chosen.samples,
        sequence_length=chosen.sequence_length,
        passes=setting.passes,
        overwrite=True,
        cache=chosen.output / "stats",
        progress=choose_progress(),
    )
    found = evaluate(
        chosen.model,
        folder,
        chosen.text,
        samples=chosen.eval_samples,
        sequence_length=chosen.sequence_length,
        target=chosen.target,
        progress=choose_progress(),
    )
    if not chosen.keep:
        shutil.rmtree(folder)
    return {
        "uniform": setting.passes is not None,
        "predicted": result.predicted,
        "seconds": result.seconds,
        "resident_bits": result.resident_bits,
        **found.facts(),
    }


def write(facts: dict[str, Any], folder: Path) -> None:
    """Writes table and picture of what has been measured so far."""
    (folder / "curve.md").write_text(table(facts), encoding="utf-8")
    series: dict[str, list[tuple[float, float]]] = {"budget": [], "uniform GPTQ": []}
    for one in facts.values():
        name = "uniform GPTQ" if one["uniform"] else "budget"
        series[name].append((one["bits"], _damage(one)))
    chart = Chart("stored bits per weight", _damage_title(facts), joined=tuple(series))
    (folder / "curve.svg").write_text(chart.draw(series), encoding="utf-8")


def _damage(one: dict[str, Any]) -> float:
    """Returns the divergence, or what stands for it where there are no tokens."""
    return float(one.get("kl", one.get("relative_error", 0.0)))


def _damage_title(facts: dict[str, Any]) -> str:
    tokens = any("kl" in one for one in facts.values())
    return "KL divergence, nats per token" if tokens else "relative error"


def table(facts: dict[str, Any]) -> str:
    """Returns a line for each point, by size."""
    columns = [one for one in _COLUMNS if any(one[1] in point for point in facts.values())]
    rows = [
        [name, *(number(one.get(key), form) for _, key, form in columns)]
        for name, one in sorted(facts.items(), key=lambda item: item[1]["bits"])
    ]
    return markdown(["", *(title for title, _, _ in columns)], rows) + _original(facts)


def _original(facts: dict[str, Any]) -> str:
    one: dict[str, Any] = next(iter(facts.values()), {})
    if "original_perplexity" not in one:
        return ""
    size, perplexity = one["original_bytes"], one["original_perplexity"]
    return f"\nThe original has {size:,} bytes and a perplexity of {perplexity:.2f}.\n"

"""A demo of the whole compiler: a language model in, a graph for stock runtimes out.

``make demo`` runs ``python -m mpqc.tools.demo``; ``make demo-full`` adds ``--full``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir import MpqcError
from .failures import tell
from .smollm2 import prepare

if TYPE_CHECKING:
    from .api import CompileResult
    from .evaluate import Evaluation

_BUDGET = 3.5
_TARGET = "ort-cpu"


@dataclass(frozen=True)
class Setting:
    """How much work the demo does.

    Attributes:
        name: The folder of the result.
        preset: The pipeline that compiles.
        samples: Calibration samples.
        sequence_length: Tokens in a sample, of calibration and of evaluation.
        evaluation_samples: Samples of held-out text.
        remark: What the table says about the setting.
    """

    name: str
    preset: str
    samples: int
    sequence_length: int
    evaluation_samples: int
    remark: str


LIGHT = Setting(
    "compiled",
    "fast",
    samples=24,
    sequence_length=256,
    evaluation_samples=8,
    remark="A light setting, for a quick look; `make demo-full` runs the default method.",
)
FULL = Setting(
    "compiled-full",
    "default",
    samples=64,
    sequence_length=512,
    evaluation_samples=8,
    remark="The full setting: the default method with its default options.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mpqc.tools.demo", description=__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("build/demo"), help="default: %(default)s"
    )
    parser.add_argument(
        "--full", action="store_true", help="run the default method, which is much slower"
    )
    chosen = parser.parse_args(arguments)
    try:
        run(chosen.output, FULL if chosen.full else LIGHT)
    except MpqcError as error:
        return tell(error)
    return 0


def run(output: Path, setting: Setting) -> None:
    """Prepares, exports, compiles and evaluates SmolLM2-135M; prints a table.

    The model that an earlier run prepared and exported is used again.

    Args:
        output: The folder for everything that is made.
        setting: How much to do.
    """
    from .api import compile
    from .evaluate import evaluate
    from .export import export_folder
    from .progress import choose_progress

    begun = time.monotonic()
    progress = choose_progress()
    calibration, held_out = write_halves(output / "text")
    progress.say("prepare SmolLM2-135M")
    model = prepare(output / "smollm2")
    exported = output / "exported"
    if not (exported / "model.onnx").is_file():
        progress.say("export it to ONNX")
        export_folder(model, exported)
    result = compile(
        exported,
        budget=_BUDGET,
        output=output / setting.name,
        target=_TARGET,
        preset=setting.preset,
        calibration=[calibration],
        samples=setting.samples,
        sequence_length=setting.sequence_length,
        overwrite=True,
        time_passes=True,
        progress=progress,
    )
    measured = evaluate(
        exported,
        result.output,
        [held_out],
        samples=setting.evaluation_samples,
        sequence_length=setting.sequence_length,
        progress=progress,
    )
    print_table(result, measured, setting, time.monotonic() - begun)


def write_halves(folder: Path) -> tuple[Path, Path]:
    """Writes the text that ships with Python: one half to calibrate on, one to measure on."""
    from ..frontend.default_text import python_topics

    text = python_topics()
    middle = text.index("\n", len(text) // 2)
    folder.mkdir(parents=True, exist_ok=True)
    halves = folder / "calibration.txt", folder / "held_out.txt"
    for path, half in zip(halves, (text[:middle], text[middle:]), strict=True):
        path.write_text(half, encoding="utf-8")
    return halves


def print_table(
    result: CompileResult, measured: Evaluation, setting: Setting, seconds: float
) -> None:
    """Prints the setting, the budget and the cost of meeting it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"SmolLM2-135M for {_TARGET}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows(result, measured, setting, seconds):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(setting.remark, highlight=False)


def rows(
    result: CompileResult, measured: Evaluation, setting: Setting, seconds: float
) -> list[tuple[str, str]]:
    """Returns the lines of the table: a name and a value each."""
    before, after = measured.original_bytes, measured.result_bytes
    length = setting.sequence_length
    return [
        ("preset", setting.preset),
        ("calibrated on", f"{setting.samples} x {length} tokens"),
        ("evaluated on", f"{measured.samples} x {length} tokens"),
        ("stored bits per weight, asked", f"{result.asked:.3f}"),
        ("stored bits per weight, got", f"{measured.bits:.3f}"),
        ("KL divergence, nats per token", _figure(measured.kl, ".3f")),
        ("top-1 agreement", _figure(measured.top1, ".1%")),
        ("perplexity, original", _figure(measured.original_perplexity, ".2f")),
        ("perplexity, compiled", _figure(measured.result_perplexity, ".2f")),
        ("model files, original", f"{before / 1e6:.1f} MB"),
        ("model files, compiled", f"{after / 1e6:.1f} MB ({before / after:.1f}x smaller)"),
        ("time", f"{seconds / 60:.1f} min"),
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())

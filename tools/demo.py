"""The whole road once: a language model in, an exact budget, a graph that stock runtimes run.

``python -m mpqc.tools.demo [-o build/demo]`` is what ``make demo`` runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir import MpqcError
from .smollm2 import prepare

if TYPE_CHECKING:
    from .api import CompileResult
    from .evaluate import Evaluation

_BUDGET = 3.5
_TARGET = "ort-cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mpqc.tools.demo", description=__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("build/demo"), help="default: %(default)s"
    )
    try:
        run(parser.parse_args(arguments).output)
    except MpqcError as error:
        print(f"mpqc: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"      {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def run(output: Path) -> None:
    """Prepares, exports, compiles and evaluates SmolLM2-135M; prints a table.

    What an earlier run prepared and exported is used again.

    Args:
        output: The folder for everything that is made.
    """
    from .api import compile
    from .evaluate import evaluate
    from .export import export_folder
    from .progress import choose_progress

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
        output=output / "compiled",
        target=_TARGET,
        calibration=[calibration],
        overwrite=True,
        progress=progress,
    )
    measured = evaluate(exported, result.output, [held_out], progress=progress)
    print_table(result, measured)


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


def print_table(result: CompileResult, measured: Evaluation) -> None:
    """Prints what was asked, what was got and what it cost."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"SmolLM2-135M for {_TARGET}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows(result, measured):
        table.add_row(name, value)
    Console().print(table)


def rows(result: CompileResult, measured: Evaluation) -> list[tuple[str, str]]:
    """Returns the lines of the table: a name and a value each."""
    before, after = measured.original_bytes, measured.result_bytes
    return [
        ("stored bits per weight, asked", f"{result.asked:.3f}"),
        ("stored bits per weight, got", f"{measured.bits:.3f}"),
        ("KL divergence, nats per token", _figure(measured.kl, ".3f")),
        ("top-1 agreement", _figure(measured.top1, ".1%")),
        ("perplexity, original", _figure(measured.original_perplexity, ".2f")),
        ("perplexity, compiled", _figure(measured.result_perplexity, ".2f")),
        ("model files, original", f"{before / 1e6:.1f} MB"),
        ("model files, compiled", f"{after / 1e6:.1f} MB ({before / after:.1f}x smaller)"),
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())

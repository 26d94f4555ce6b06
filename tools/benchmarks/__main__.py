"""``python -m mpqc.tools.benchmarks NAME ...``: one benchmark, one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ...ir import MpqcError
from ..failures import tell
from . import codebooks, compile_cost, latency, methods, plan_check, prediction, speed, workers
from .field import contest
from .gpu import command as gpu
from .zoo import contest as zoo

_ALL = {
    "speed": (speed, "tokens a second of original and result, in turns"),
    "latency": (latency, "what bounds on time cost in quality"),
    "compile-cost": (compile_cost, "seconds and memory of a compilation"),
    "workers": (workers, "a compilation with one and with several workers"),
    "plan-check": (plan_check, "what mpqc plan predicts, and what the compilation then takes"),
    "methods": (methods, "all presets on several models, for docs/methods.md"),
    "field": (contest, "other people's tools on the same model, calibration and texts"),
    "zoo": (zoo, "ONNX Runtime's own quantizers on models of many kinds"),
    "gpu": (gpu, "results on an NVIDIA GPU: prepare here, run there, show the table"),
    "codebooks": (codebooks, "seconds to fit codebooks to every input channel"),
    "prediction": (prediction, "predicted against measured divergence"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a benchmark; returns the exit code."""
    parser, _ = parsers()
    chosen = parser.parse_args(arguments)
    try:
        _ALL[chosen.name][0].run(chosen)
    except MpqcError as error:
        return tell(error)
    return 0


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser of the command, and those of the benchmarks by name."""
    parser = argparse.ArgumentParser(prog="python -m mpqc.tools.benchmarks")
    group = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, (module, summary) in _ALL.items():
        module.add_options(group.add_parser(name, help=summary, description=module.__doc__))
    return parser, dict(group.choices)


if __name__ == "__main__":
    sys.exit(main())

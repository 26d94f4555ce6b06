"""Seconds by pass with different numbers of workers, and whether the bytes agree."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...ir import temporary_folder
from ..comparison.kept import Kept
from ..comparison.markdown import markdown
from ..manifest import file_hash
from ..option_fields import add_options as add_shared
from ..options import CompileOptions
from .compile_cost import compile_apart
from .results import show

_SHARED = (
    "budget",
    "file_budget",
    "preset",
    "output",
    "calibration",
    "random_calibration",
    "samples",
    "sequence_length",
    "target",
)
_NONE = "none"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="exported folder or file")
    add_shared(parser, CompileOptions, _SHARED)
    parser.add_argument(
        "--counts",
        metavar="N|ADDRESS",
        nargs="+",
        default=["1", "2"],
        help="what to give to --workers, one compilation each; none for threads; default: 1 2",
    )


def run(chosen: argparse.Namespace) -> None:
    """Compiles once for each number of workers, each time with nothing in the cache."""
    found: dict[str, Any] = {}
    for count in chosen.counts:
        given = argparse.Namespace(**vars(chosen))
        given.workers = None if count == _NONE else count
        with temporary_folder() as folder:
            found[count] = compile_apart(given, folder)
            files = sorted((folder / "compiled").glob("*.onnx*"))
            found[count]["files"] = {one.name: file_hash(one) for one in files}
        if chosen.output is not None:
            Kept(chosen.output / "workers.json").put(count, found[count])
    show(chosen.output, "workers", table(found))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns seconds by pass, a column for each number of workers, and how they compare."""
    first = next(iter(found.values()))
    rows = [
        [name, *(f"{one['passes'].get(name, 0.0):.1f}" for one in found.values())]
        for name in first["passes"]
    ]
    rows.append(["whole command", *(f"{one['wall']:.1f}" for one in found.values())])
    same = ["yes" if one["files"] == first["files"] else "NO" for one in found.values()]
    rows.append(["same bytes as the first", *same])
    heads = [f"{count} workers" if count != _NONE else "threads" for count in found]
    return markdown(["seconds", *heads], rows)

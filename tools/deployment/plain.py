"""plain: model, companions and reports in one folder, for any program with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from .example import run_by_onnxruntime
from .kind import Code, Kind, Layout

if TYPE_CHECKING:
    from .kind import Finished

_CPU = "CPUExecutionProvider"
_PACKAGES = ("onnxruntime-gpu", "onnxruntime")


def installed_version(packages: Sequence[str]) -> str:
    """Returns the version of the first of ``packages`` that is installed here."""
    for name in packages:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


def onnxruntime_version() -> str:
    """Returns the version of ONNX Runtime that is installed, which has run the result."""
    return installed_version(_PACKAGES)


def runs_in(result: Finished) -> str:
    """Returns a line on the runtime that the result was loaded in."""
    table, end = result.target, "ExecutionProvider"
    on, proven = (one.removesuffix(end) for one in (table.deployed_provider, table.provider))
    where = "" if on == proven else f" on {proven}"
    return f"ONNX Runtime on {on}; loaded and run by version {onnxruntime_version()}{where}"


def _lay_out(result: Finished) -> Layout:
    text, on_cpu = run_by_onnxruntime(result), result.target.deployed_provider == _CPU
    needed = ["onnxruntime" if on_cpu else "onnxruntime-gpu", "numpy"]
    if "from tokenizers" in text:
        needed.append("tokenizers")
    said = f"In this folder, after `pip install {' '.join(needed)}`"
    return Layout(result.model, (runs_in(result),), (Code(f"{said}:", "python", text),))


KIND = Kind(program="ONNX Runtime", lay_out=_lay_out)

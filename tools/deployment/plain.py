"""plain: model, companions and reports in one folder, for any program with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from .example import run_by_onnxruntime
from .kind import Code, Kind, Layout

if TYPE_CHECKING:
    from .kind import Finished

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
    provider = result.target.provider.removesuffix("ExecutionProvider")
    return f"ONNX Runtime on {provider}; loaded and run by version {onnxruntime_version()}"


def _lay_out(result: Finished) -> Layout:
    said = "In this folder"
    if "from tokenizers" in (text := run_by_onnxruntime(result)):
        said += ", after `pip install onnxruntime numpy tokenizers`"
    else:
        said += ", after `pip install onnxruntime numpy`"
    return Layout(result.model, (runs_in(result),), (Code(f"{said}:", "python", text),))


KIND = Kind(program="ONNX Runtime", lay_out=_lay_out)

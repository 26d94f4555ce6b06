"""Which runtimes are installed as Python packages, and whether they load."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata

from .native_log import native_log


@dataclass(frozen=True)
class Package:
    """A runtime that can be installed.

    Attributes:
        title: What it is called.
        module: What is imported.
        wheels: The distributions that bring it, of which there may be one.
        install: The command that installs it.
    """

    title: str
    module: str
    wheels: tuple[str, ...]
    install: str

    def installed(self) -> dict[str, str]:
        """Returns its distributions here, with their versions."""
        found = {name: _version(name) for name in self.wheels}
        return {name: version for name, version in found.items() if version}

    def problem(self) -> str | None:
        """Returns in one line why it cannot be used, or None when it loads."""
        wheels = self.installed()
        if not wheels:
            return f"not installed: {self.install}"
        if len(wheels) > 1:
            return f"{' and '.join(wheels)} overwrite each other: uninstall one of them"
        with native_log() as log:
            failure = _import_failure(self.module)
        if failure is None:
            return None
        lacks = log.missing_library
        return f"does not load: {f'{lacks} is missing' if lacks else failure}"


PACKAGES = (
    Package(
        "ONNX Runtime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "pip install onnxruntime",
    ),
    Package("OpenVINO", "openvino", ("openvino",), "pip install 'mpqc[openvino]'"),
    Package("TensorRT", "tensorrt", ("tensorrt",), "pip install tensorrt"),
    Package(
        "onnxruntime-genai",
        "onnxruntime_genai",
        ("onnxruntime-genai", "onnxruntime-genai-cuda"),
        "pip install 'mpqc[hf]'",
    ),
)


def _import_failure(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a foreign package does when it is imported
        return " ".join(f"{error or type(error).__name__}".split())[:160]
    return None


def _version(wheel: str) -> str:
    try:
        return metadata.version(wheel)
    except metadata.PackageNotFoundError:
        return ""

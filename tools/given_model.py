"""What the Python API is given as a model: a path, or a torch module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..frontend.model_source import Source, locate
from ..ir import UsageError, write_model
from .option_fields import utf8_path
from .options import SourceOptions


def is_module(model: Any) -> bool:
    """Tells whether a model is a torch module, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def check_model(model: Any, options: SourceOptions) -> None:
    """Refuses what is no model, and options that do not go with it.

    Raises:
        UsageError: Something is missing, or too much.
    """
    if is_module(model):
        if options.example_inputs is None:
            raise UsageError(
                "a torch module needs example inputs",
                hint="mpqc.compile(module, example_inputs=(tensor,), budget=3.5)",
            )
        return
    if not isinstance(model, (str, Path)):
        raise UsageError(f"{type(model).__name__} is no model: give a path or a torch module")
    if options.example_inputs is not None or options.dynamic_shapes is not None:
        raise UsageError("example_inputs and dynamic_shapes only go with a torch module")


def find_source(model: Any) -> Source | None:
    """Returns the files of a model; None of a module, which has none yet.

    Raises:
        InputError: There are no such files.
    """
    return None if is_module(model) else locate(utf8_path(model))


def from_module(module: Any, options: SourceOptions, scratch: Path) -> Source:
    """Exports a torch module into ``scratch``."""
    from ..frontend import torch_module

    folder = scratch / "module"
    folder.mkdir()
    inputs = options.example_inputs or ()
    graph = torch_module.from_module(module, inputs, options.dynamic_shapes)
    write_model(graph, folder / "model.onnx")
    return Source(Path(type(module).__name__), folder / "model.onnx", (folder,))

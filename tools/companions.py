"""Tokenizer and settings files: carried into the result, told about the new model file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

from ..frontend.model_source import Source, read_settings, section
from ..ir import DECODER_FILE, Capabilities, machine_errors

_GENAI = "genai_config.json"
_GENAI_PROVIDERS = {"CPUExecutionProvider": None, "CUDAExecutionProvider": "cuda"}


def carry_companions(
    source: Source, folder: Path, target: Capabilities | None = None
) -> list[str]:
    """Copies the companion files of ``source`` beside ``folder/model.onnx``.

    Args:
        source: The model that they belong to.
        folder: Where they go.
        target: What onnxruntime-genai shall run the model on; None keeps what it says.

    Returns:
        Their names.
    """
    found = source.companions()
    for name, path in found.items():
        with machine_errors(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name == _GENAI:
                _carry_genai(path, folder / name, target)
            else:
                shutil.copyfile(path, folder / name)
    return list(found)


def _carry_genai(path: Path, new: Path, target: Capabilities | None) -> None:
    """Copies genai_config.json with the name of the new file and the target's provider."""
    settings = read_settings(path)
    for name in ("encoder", "decoder"):
        part = cast("dict[str, Any]", section(settings, "model", name))
        if name == "decoder" and part and part.get("filename") != DECODER_FILE:
            part["filename"] = "model.onnx"
        options = part.get("session_options")
        if (
            target is not None
            and target.deployed_provider in _GENAI_PROVIDERS
            and isinstance(options, dict)
        ):
            provider = _GENAI_PROVIDERS[target.deployed_provider]
            options["provider_options"] = [{provider: {}}] if provider else []
    new.write_text(json.dumps(settings, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")

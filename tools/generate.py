"""mpqc generate: a folder for onnxruntime-genai and a prompt -> what the model writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..backend.onnxruntime.generation import generated
from ..ir import ENCODER_FILE, InputError, UsageError, read_model


def generate(folder: Path, prompt: str, max_tokens: int = 64) -> Iterator[str]:
    """Yields what a model writes after ``prompt``, piece by piece.

    It takes the likeliest token each time, so the same prompt gives the same text.

    Args:
        folder: A result of ``mpqc compile --for genai``, or any other folder of
            onnxruntime-genai's.
        prompt: The text to go on from. No chat template is put around it.
        max_tokens: Tokens to write at most.

    Raises:
        InputError: The folder is none of onnxruntime-genai's, or is unsafe.
        MachineError: onnxruntime-genai is not installed.
        UsageError: The prompt is empty or too long, or the model reads no text.
    """
    if not prompt:
        raise UsageError("the prompt is empty", hint="give the beginning of a text")
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder",
            hint="give the output folder of: mpqc compile MODEL --budget B --for genai",
        )
    if (folder / ENCODER_FILE).is_file():
        raise UsageError(f"the model in {folder} hears; it does not go on with a text")
    for path in folder.glob("*.onnx"):
        read_model(path)  # which refuses data outside the folder
    return generated(folder.absolute(), prompt, max_tokens)

"""Generating text with onnxruntime-genai, timed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ir import InputError, MachineError

_SETTINGS = "genai_config.json"


@dataclass(frozen=True)
class Speed:
    """How quickly a model read a prompt and went on from it.

    Attributes:
        prompt: Tokens of the prompt read a second.
        generation: Tokens generated a second, one after the other.
    """

    prompt: float
    generation: float


def generation_speed(folder: Path, *, prompt_tokens: int, new_tokens: int) -> Speed:
    """Loads a folder, generates, and frees everything again.

    Args:
        folder: A model with its ``genai_config.json``.
        prompt_tokens: Length of the prompt. What it says does not change the speed.
        new_tokens: How many tokens to generate; an end token does not end it.

    Raises:
        InputError: The folder is none of onnxruntime-genai's.
        MachineError: onnxruntime-genai is not installed.
    """
    try:
        import onnxruntime_genai as genai
    except ImportError as error:
        raise MachineError(
            "onnxruntime-genai is not installed", hint="pip install 'mpqc[hf]'"
        ) from error
    prompt = _prompt(folder, prompt_tokens)
    try:
        return _generate(genai, genai.Model(str(folder)), prompt, new_tokens)
    except RuntimeError as error:  # the library has no class of its own
        raise InputError(f"onnxruntime-genai cannot run {folder}: {error}") from error


def _generate(genai: Any, model: Any, prompt: np.ndarray, new_tokens: int) -> Speed:
    length = len(prompt) + new_tokens
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, options)
    begun = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()  # some backends read the prompt only now
    read = time.perf_counter()
    for _ in range(new_tokens - 1):
        generator.generate_next_token()
    done = time.perf_counter()
    return Speed(len(prompt) / (read - begun), (new_tokens - 1) / (done - read))


def _prompt(folder: Path, length: int) -> np.ndarray:
    """Returns token ids spread over the vocabulary."""
    path = folder / _SETTINGS
    try:
        words = int(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} has no {_SETTINGS} that names a vocabulary",
            hint="export the model with: mpqc export",
        ) from error
    return np.random.default_rng(0).integers(0, words, length).astype(np.int32)

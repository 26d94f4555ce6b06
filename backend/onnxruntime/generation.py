"""Generating text with onnxruntime-genai: piece by piece, or timed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from ...ir import InputError, MachineError, UsageError

_SETTINGS = "genai_config.json"
_LIBRARY = "library"  # in keys that name shared objects to load


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
    genai = _library()
    prompt = _prompt(folder, prompt_tokens)
    try:
        return _generate(genai, genai.Model(str(folder)), prompt, new_tokens)
    except RuntimeError as error:  # the library has no class of its own
        raise InputError(f"onnxruntime-genai cannot run {folder}: {error}") from error


def generated(folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
    """Loads a folder and yields what the model writes after ``prompt``, greedily.

    The model's end token ends it, as does its longest context.

    Args:
        folder: A model with its ``genai_config.json`` and tokenizer.
        prompt: The text to go on from.
        max_tokens: How many tokens to write at most.

    Raises:
        InputError: The folder is none of onnxruntime-genai's, or is unsafe.
        MachineError: onnxruntime-genai is not installed.
        UsageError: The prompt has no tokens, or too many.
    """
    genai, longest = _library(), _model_fact(folder, "context_length")
    try:
        model = genai.Model(str(folder))
        tokenizer = genai.Tokenizer(model)
        ids = tokenizer.encode(prompt)
        _check_length(len(ids), longest)
        options = genai.GeneratorParams(model)
        most = min(len(ids) + max_tokens, longest)
        options.set_search_options(max_length=most, do_sample=False)
        generator, shown = genai.Generator(model, options), tokenizer.create_stream()
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
            yield shown.decode(generator.get_next_tokens()[0])
    except RuntimeError as error:  # the library has no class of its own
        raise InputError(f"onnxruntime-genai cannot run {folder}: {error}") from error


def refuse_code(settings: Any) -> None:
    """Refuses a genai_config.json that has a library loaded, or files from elsewhere.

    Raises:
        InputError: It does.
    """
    waiting = [settings]
    while waiting:
        content = waiting.pop()
        if isinstance(content, list):
            waiting += content
        for key, value in content.items() if isinstance(content, dict) else ():
            if _LIBRARY in str(key) and value:
                raise InputError(
                    f"{_SETTINGS} asks for code to be run: it has the key {key!r}",
                    hint="remove the key if the model works without it",
                )
            if key == "filename" and (
                not isinstance(value, str) or PureWindowsPath(value).name != value
            ):
                raise InputError(f"{_SETTINGS} names a file outside its folder: {value!r:.80}")
            waiting.append(value)


def _library() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise MachineError(
            "onnxruntime-genai is not installed", hint="pip install 'mpqc[hf]'"
        ) from error
    return onnxruntime_genai


def _check_length(tokens: int, longest: int) -> None:
    if tokens == 0:
        raise UsageError("the prompt is empty", hint="give the beginning of a text")
    if tokens >= longest:
        raise UsageError(
            f"the prompt has {tokens} tokens, the model holds {longest} at most",
            hint="give a shorter one",
        )


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
    words = _model_fact(folder, "vocab_size")
    return np.random.default_rng(0).integers(0, words, length).astype(np.int32)


def _model_fact(folder: Path, key: str) -> int:
    """Returns a positive number of the section ``model`` of genai_config.json.

    Raises:
        InputError: There is none, or the file asks for code to be run.
    """
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        number = int(settings["model"][key])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder} has no {_SETTINGS} that names a {key}",
            hint="make the folder with: mpqc compile MODEL --budget B --for genai",
        ) from error
    refuse_code(settings)
    if not 0 < number < 1 << 31:
        raise InputError(f"{_SETTINGS} has the {key} {number:.3g}")
    return number

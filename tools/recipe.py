"""Recipes: a small TOML file with a pipeline or a preset, and defaults for options.

pipeline = "normalize,partition-blocks,calibrate,...,allocate-bits{budget=3.5},..."
samples = 48
sequence-length = 1024
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir import InputError, UsageError
from ..ir.text_form import did_you_mean

_LARGEST = 1 << 20
_KINDS: dict[str, type] = {
    "pipeline": str,
    "preset": str,
    "target": str,
    "objective": str,
    "activations": str,
    "samples": int,
    "sequence-length": int,
    "seed": int,
}


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Attributes:
        pipeline: Passes as text, if it gives them.
        preset: Name of a pipeline, if it gives one.
        defaults: Values for options that the caller does not give.
    """

    pipeline: str | None
    preset: str | None
    defaults: dict[str, Any]


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a small TOML file.

    Raises:
        InputError: The file cannot be read or is no TOML.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is too large for a recipe")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe. It can name passes and numbers, never files or code.

    Raises:
        InputError: The file cannot be read or is no TOML.
        UsageError: It has a key that no recipe has, or a value of the wrong kind.
    """
    content = read_toml(path)
    for key, value in content.items():
        kind = _KINDS.get(key)
        if kind is None:
            raise UsageError(f"{path}: unknown key {key!r}", hint=did_you_mean(key, _KINDS))
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{path}: {key} wants {kind.__name__}, not {value!r}")
    pipeline, preset = content.pop("pipeline", None), content.pop("preset", None)
    defaults = {key.replace("-", "_"): value for key, value in content.items()}
    return Recipe(pipeline, preset, defaults)

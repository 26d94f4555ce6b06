"""Recipes: a small TOML file with a pipeline or a preset, and defaults for options.

preset = "fast"
samples = 48
sequence-length = 1024
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..ir import InputError, UsageError
from ..ir.text_form import did_you_mean
from .option_fields import key_of, specs
from .options import CompileOptions

_LARGEST = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a small TOML file.

    Raises:
        InputError: The file cannot be read or is no TOML.
        UsageError: It holds a number with more digits than a number can have.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise InputError(f"{path} is no ordinary file")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise InputError(f"{path} is too large for a recipe")
        return tomllib.loads(content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    except ValueError as error:  # of int()
        raise UsageError(f"{path} holds a number with too many digits") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a recipe: values by the names of options. It can name no files and no code.

    Raises:
        InputError: The file cannot be read or is no TOML.
        UsageError: It has a key that no recipe has, or a value of the wrong kind.
    """
    keys = {
        one.recipe if isinstance(one.recipe, str) else key_of(name).replace("_", "-"): (
            name,
            one,
        )
        for name, one in specs(CompileOptions).items()
        if one.recipe
    }
    found = {}
    for key, value in read_toml(path).items():
        if key not in keys:
            raise UsageError(f"{path}: unknown key {key!r}", hint=did_you_mean(key, keys))
        name, spec = keys[key]
        if spec.kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, spec.kind) or isinstance(value, bool):
            wanted, given = spec.kind.__name__, type(value).__name__
            raise UsageError(f"{path}: {key} wants {wanted}, not {given}")
        found[name] = value
    return found

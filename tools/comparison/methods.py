"""What is compared: presets by name, and pipelines from a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...ir import UsageError
from ...ir.text_form import did_you_mean, parse_records, print_value
from ...passes.engine.pipeline.base import Pass
from ..budget import Budget
from ..option_fields import specs
from ..options import CalibrationOptions, CompileOptions
from ..pass_options import changed
from ..pipelines import CHANGED_PRESET, PRESETS, find_preset
from ..recipe import read_toml
from ..settings import CompileSettings, make_settings

_BUDGET = "{budget}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.,+=()-]{0,39}")  # of a folder too
_CHANGED = re.compile(r"\s*([\w-]+)\s*\+\s*(.*)", re.DOTALL)
_EXAMPLE = f'[methods]\nname = "{CHANGED_PRESET}"'


@dataclass(frozen=True)
class Method:
    """A way to compile.

    Attributes:
        name: What it is called in tables and files.
        text: A pipeline in which ``{budget}`` stands for stored bits per weight, or a preset
            and options to change in it, as in ``CHANGED_PRESET``; None for the preset called
            ``name``.
    """

    name: str
    text: str | None = None

    def settings(
        self, budget: Budget, given: CalibrationOptions
    ) -> CompileSettings | UsageError:
        """Returns what decides the compilation, or why a preset knows no such budget.

        Args:
            budget: Stored bits per weight.
            given: What all methods have in common.

        Raises:
            UsageError: The text is no pipeline that could run.
        """
        if self.text is None:
            try:
                return settings_for(budget, given, preset=self.name)
            except UsageError as error:
                return error
        bits = budget.bits
        try:
            return self._of_text(self.text.replace(_BUDGET, print_value(bits)), budget, given)
        except UsageError as error:
            message = f"method {self.name!r}: {error.message}"
            raise UsageError(message, hint=error.hint) from error

    def bound(self, budget: Budget) -> Budget:
        """Returns ``budget``, for the file alone where the method can bound nothing else."""
        found = _CHANGED.fullmatch(self.text) if self.text is not None else None
        base = self.name if self.text is None else found[1] if found is not None else ""
        preset = PRESETS.get(base)
        return replace(budget, expand=True) if preset and preset.file_only else budget

    def _of_text(
        self, text: str, budget: Budget, given: CalibrationOptions
    ) -> CompileSettings:
        found = _CHANGED.fullmatch(text)
        if found is None:
            return settings_for(budget, given, passes=text)
        base = settings_for(budget, given, preset=found[1])
        assert budget.bits is not None
        passes = _changed(base.pipeline(budget.bits), found[2])
        # The passes say all that a preset would be told.
        return make_settings(replace(base.options, preset=None, outputs="auto"), passes)


def settings_for(budget: Budget, given: CalibrationOptions, **method: Any) -> CompileSettings:
    """Returns settings for a budget and options that all methods have in common.

    Args:
        budget: Stored bits per weight.
        given: What all methods have in common.
        method: A ``preset`` or ``passes``; by default the default preset.
    """
    common = {name: getattr(given, name) for name in specs(CalibrationOptions)}
    bound: dict[str, Any] = {"file_budget" if budget.expand else "budget": budget.bits}
    return make_settings(CompileOptions(**common, **bound, **method))


def _changed(passes: tuple[Pass, ...], changes: str) -> tuple[Pass, ...]:
    """Returns passes with some of their options replaced."""
    names = [one.name for one in passes]
    for name, options in parse_records(changes):
        if name not in names:
            raise UsageError(
                f"its preset has no pass {name!r} to change", hint=did_you_mean(name, names)
            )
        passes = tuple(changed(one, options) if one.name == name else one for one in passes)
    return passes


def read_methods(words: Sequence[str]) -> list[Method]:
    """Returns the methods that words name: presets, ``.toml`` files, or lists with commas.

    Args:
        words: What the user gave; nothing means all presets.

    Raises:
        InputError: A file cannot be read.
        UsageError: A name is unknown, or two methods have the same one.
    """
    found: dict[str, Method] = {}
    for word in split_list(words) or list(PRESETS):
        for method in _named(word):
            if found.setdefault(method.name, method) != method:
                raise UsageError(f"two methods are called {method.name!r}")
    return list(found.values())


def split_list(words: Iterable[str]) -> list[str]:
    """Returns the words between spaces and commas."""
    return [part for word in words for part in word.replace(",", " ").split()]


def _named(word: str) -> Iterator[Method]:
    if not word.lower().endswith(".toml"):
        find_preset(word)
        yield Method(word)
        return
    content = read_toml(Path(word))
    table = content.get("methods")
    if content.keys() != {"methods"} or not isinstance(table, dict) or not table:
        raise UsageError(f"{word} holds no methods", hint=f"write {_EXAMPLE!r}")
    for name, text in table.items():
        if not isinstance(text, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"{word}: {name!r} is no method",
                hint="write a short name without slashes, and a pipeline as text",
            )
        if name in PRESETS:
            raise UsageError(f"{word}: {name!r} is a preset", hint="choose another name")
        yield Method(name, text)

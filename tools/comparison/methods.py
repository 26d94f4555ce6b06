"""What is compared: presets by name, and pipelines from a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...ir import UsageError
from ...ir.text_form import did_you_mean, parse_records, print_records, print_value
from ..budget import Budget
from ..pipelines import PRESETS, find_preset
from ..recipe import read_toml
from ..settings import CompileSettings, make_settings

_BUDGET = "{budget}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.,+=()-]{0,39}")  # of a folder too
_CHANGED = re.compile(r"\s*([\w-]+)\s*\+\s*(.*)", re.DOTALL)
_EXAMPLE = '[methods]\nname = "fast + quantize-weights{rounding=nearest}"'


@dataclass(frozen=True)
class Method:
    """A way to compile.

    Attributes:
        name: What it is called in tables and files.
        text: A pipeline in which ``{budget}`` stands for stored bits per weight, or a preset
            and options to change in it (``fast + quantize-weights{rounding=nearest}``);
            None for the preset called ``name``.
    """

    name: str
    text: str | None = None

    def settings(self, budget: Budget, given: dict[str, Any]) -> CompileSettings | UsageError:
        """Returns what decides the compilation, or why a preset knows no such budget.

        Args:
            budget: Stored bits per weight.
            given: The other arguments of ``make_settings``.

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
        changed = _CHANGED.fullmatch(self.text) if self.text is not None else None
        base = self.name if self.text is None else changed[1] if changed is not None else ""
        preset = PRESETS.get(base)
        return replace(budget, expand=True) if preset and preset.file_only else budget

    def _of_text(self, text: str, budget: Budget, given: dict[str, Any]) -> CompileSettings:
        found = _CHANGED.fullmatch(text)
        if found is None:
            return settings_for(budget, given, passes=text)
        objective = given.get("objective") or "auto"
        assert budget.bits is not None
        changed = _changed(find_preset(found[1])(budget.bits, objective), found[2])
        return settings_for(budget, {**given, "objective": None}, passes=changed)


def settings_for(
    budget: Budget,
    given: dict[str, Any],
    *,
    preset: str | None = None,
    passes: str | None = None,
) -> CompileSettings:
    """Returns settings of one of two kinds of budget; the rest is as for ``make_settings``."""
    bounds = (None, budget.bits) if budget.expand else (budget.bits, None)
    return make_settings(*bounds, preset=preset, passes=passes, **given)


def _changed(pipeline: str, changes: str) -> str:
    """Returns a pipeline with some options of its passes replaced."""
    records, names = parse_records(pipeline), [name for name, _ in parse_records(pipeline)]
    for name, options in parse_records(changes):
        if name not in names:
            raise UsageError(
                f"its preset has no pass {name!r} to change", hint=did_you_mean(name, names)
            )
        records = [
            (one, {**before, **options} if one == name else before) for one, before in records
        ]
    return print_records(records)


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


def split_list(words: Sequence[str]) -> list[str]:
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

"""Where benchmarks keep what they have measured, and how they show it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ir import InputError, UsageError
from ..manifest import plain_json


class Kept:
    """Measurements by name, in a JSON file that is whole at any time.

    Attributes:
        facts: What has been measured so far.
    """

    def __init__(self, path: Path, given: Mapping[str, Any] | None = None) -> None:
        """Opens a file, or begins one.

        Args:
            path: The file.
            given: What all measurements in it have in common; None takes what is there.

        Raises:
            UsageError: What is there was measured with something else.
        """
        self._path = path
        self._given = plain_json(dict(given or {}))
        self.facts: dict[str, Any] = {}
        if path.is_file():
            self.facts, before = _read(path)
            if given is not None and before != self._given:
                raise UsageError(
                    f"{path} was measured with other options", hint="choose another folder"
                )

    def put(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keeps ``facts`` under ``name``."""
        self.facts[name] = plain_json(dict(facts))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        content = {"given": self._given, "measured": self.facts}
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["measured"], content["given"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no measurement of ours", hint="remove it") from error


def given_in(chosen: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Returns the options called ``names``, paths as texts."""
    found = {name: getattr(chosen, name) for name in names}
    return {
        name: [str(one) for one in value] if isinstance(value, (list, tuple)) else str(value)
        for name, value in found.items()
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table: the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None, form: str) -> str:
    """Returns a number as text, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def show(folder: Path | None, name: str, table: str) -> None:
    """Prints a table, and writes it to a folder if there is one."""
    print(table, end="")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(table, encoding="utf-8")

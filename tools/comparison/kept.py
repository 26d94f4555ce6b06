"""Measurements in a file that is whole at any time, so that work can go on after a break."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...ir import InputError, UsageError
from ..manifest import plain_json
from .files import write_whole


class Kept:
    """Measurements by name.

    Attributes:
        path: The file.
        given: What all measurements in it have in common.
        facts: What has been measured so far.
    """

    def __init__(self, path: Path, given: Mapping[str, Any] | None = None) -> None:
        """Opens a file, or begins one.

        Args:
            path: The file.
            given: What all measurements in it have in common; None takes what is there.

        Raises:
            InputError: What is there is no such file.
            UsageError: What is there was measured with something else.
        """
        self.path = path
        self.given: dict[str, Any] = plain_json(dict(given or {}))
        self.facts: dict[str, Any] = {}
        if path.is_file():
            self.facts, before = _read(path)
            if given is None:
                self.given = before
            elif before != self.given:
                _refuse(path, _differences(before, self.given))

    def put(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keeps ``facts`` under ``name``."""
        self.facts[name] = plain_json(dict(facts))
        content = {"given": self.given, "measured": self.facts}
        write_whole(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measured, given = content["measured"], content["given"]
        if not isinstance(measured, dict) or not isinstance(given, dict):
            raise TypeError("not two objects")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no measurement of ours", hint="remove it") from error
    return measured, given


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the names of what is not the same, in words."""
    names = [one for one in {**before, **now} if before.get(one) != now.get(one)]
    return ", ".join(name.replace("_", " ") for name in names)


def _refuse(path: Path, what: str) -> None:
    raise UsageError(
        f"{path} was measured with other options: not the same {what}",
        hint="choose another folder with -o, or begin anew with --overwrite",
    )

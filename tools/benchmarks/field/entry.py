"""What takes part: tools, the packages that they need, and what each is asked for."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....ir import InputError

KNOWN = Path(__file__).with_name("peers.toml")
_KEEP_FLOAT = 16  # bits of what a tool leaves in floating point


@dataclass(frozen=True)
class Peer:
    """A tool.

    Attributes:
        name: Its name in commands and folders.
        title: Its name in tables.
        home: The folder that holds ``peers/``: where the description of the tool stands.
        module: The script in ``peers/`` that runs it.
        packages: What pip installs for it, one step after the other.
    """

    name: str
    title: str
    home: Path
    module: str
    packages: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Entry:
    """One thing that a tool is asked for.

    Attributes:
        peer: The tool.
        name: What it is called in tables, after the tool's title.
        settings: What the script is told.
        rest: Widths at which to store what the tool leaves in floating point; 16 leaves it
            as it is, fewer bits round it to nearest in groups of 64.
    """

    peer: Peer
    name: str
    settings: dict[str, Any]
    rest: tuple[int, ...]

    @property
    def folder(self) -> str:
        """A name for files."""
        return re.sub(r"[^a-z0-9.]+", "-", f"{self.peer.name} {self.name}".lower())

    def label(self, rest: int) -> str:
        """Returns the name of the row in which the rest has that width."""
        name = f"{self.peer.title}: {self.name}"
        return name if rest == _KEEP_FLOAT else f"{name}; rest to nearest, {rest} bits"


def read_entries(path: Path = KNOWN) -> list[Entry]:
    """Reads tools and entries from a TOML file.

    Raises:
        InputError: It is not readable, or lacks something.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return [
            entry for name, table in tables.items() for entry in _entries(name, table, path)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} describes no tools: {error!r}") from error


def _entries(name: str, table: dict[str, Any], path: Path) -> list[Entry]:
    steps = tuple(tuple(step) for step in table["packages"])
    peer = Peer(name, table["title"], path.resolve().parent, table["module"], steps)
    return [
        Entry(
            peer,
            one["name"],
            {key: value for key, value in one.items() if key not in ("name", "rest")},
            tuple(one.get("rest", [_KEEP_FLOAT])),
        )
        for one in table["entry"]
    ]

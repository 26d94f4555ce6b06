"""How benchmarks show what they have measured, and what they were told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..comparison.files import write_whole


def given_in(chosen: argparse.Namespace, names: Sequence[str]) -> dict[str, object]:
    """Returns the options called ``names``, paths as texts."""
    found = {name: getattr(chosen, name) for name in names}
    return {
        name: [str(one) for one in value] if isinstance(value, (list, tuple)) else str(value)
        for name, value in found.items()
    }


def show(folder: Path | None, name: str, table: str) -> None:
    """Prints a table, and writes it to a folder if there is one."""
    print(table, end="")
    if folder is not None:
        write_whole(folder / f"{name}.md", table)

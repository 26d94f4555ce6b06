"""Text files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ...ir import machine_errors


def write_whole(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``, making the folder if need be.

    Raises:
        MachineError: The disk is full or the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)

"""Text files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from ...ir import machine_errors
from ...ir.atomic_file import replacing


def write_whole(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``, making the folder if need be.

    Raises:
        MachineError: The disk is full or the place cannot be written.
    """
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))

"""The folder of a comparison: what it may hold, and one process at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...ir import UsageError, machine_errors, temporary_folder
from ...ir.owned_folder import claim, release
from ...ir.undoing import undone

RESULTS = "compare.json"
TABLE = "compare.md"
PICTURE = "compare.svg"
COMPILED = "compiled"
_WORK = ".mpqc-work"


@contextmanager
def opened(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Makes or enters the folder ``output``; gives a folder in it for temporary files.

    What a killed process left there is removed. Files that are not ours stay.

    Args:
        output: The folder of the comparison.
        overwrite: Whether to forget what an earlier run measured.

    Raises:
        UsageError: There is something else, or another comparison at work.
        MachineError: The place cannot be written.
    """
    _refuse(output, overwrite)
    with machine_errors(output / RESULTS):
        output.mkdir(parents=True, exist_ok=True)
        lock = claim(output / _WORK)
    if lock is None:
        raise UsageError(
            f"another comparison writes to {output}",
            hint="wait for it, or choose another folder with -o",
        )
    with undone(partial(release, output / _WORK, lock)):
        if overwrite:
            _forget(output)
        with temporary_folder(output / _WORK) as work:
            yield work


def _refuse(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise UsageError(
            f"the output {output} exists and is not a folder", hint="choose another with -o"
        )
    foreign = [one for one in output.iterdir() if not one.name.startswith(".mpqc-")]
    if foreign and not overwrite and not (output / RESULTS).is_file():
        raise UsageError(
            f"the output folder {output} exists and holds no comparison",
            hint="choose another with -o, or add --overwrite",
        )


def _forget(output: Path) -> None:
    for name in (RESULTS, TABLE, PICTURE):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / COMPILED, ignore_errors=True)

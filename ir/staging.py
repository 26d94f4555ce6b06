"""Output folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from .atomic_file import sync
from .errors import UsageError
from .machine_errors import machine_errors
from .owned_folder import claim, release
from .undoing import undone


def refuse_overlap(output: Path, inputs: Iterable[Path]) -> None:
    """Refuses an output folder that is, or contains, or would replace an input.

    Raises:
        UsageError: Writing ``output`` would destroy one of ``inputs``.
    """
    real = Path(os.path.realpath(output))
    for one in inputs:
        found = Path(os.path.realpath(one))
        if found == real or found.is_relative_to(real):
            raise UsageError(
                f"the output {output} would replace the input {one}",
                hint="choose another output folder with -o",
            )


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise UsageError(
            f"the output {output} exists and is not a folder", hint="choose another with -o"
        )
    if not overwrite and any(output.iterdir()):
        raise UsageError(
            f"the output folder {output} exists and is not empty",
            hint="choose another with -o, or add --overwrite",
        )


def _put_back(stage: Path, output: Path) -> None:
    """Undoes a replacement that stopped half way."""
    if (stage / "old").is_dir() and not os.path.lexists(output):
        os.rename(stage / "old", output)


def _clear(stage: Path, output: Path) -> None:
    """Removes what a killed process left, after putting back what it had moved aside."""
    _put_back(stage, output)
    for folder in filter(Path.is_dir, list(stage.iterdir())):
        shutil.rmtree(folder)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def _publish(stage: Path, output: Path) -> None:
    """Renames the staged folder into place; on failure the old folder is back."""
    try:
        if output.is_dir():
            os.rename(output, stage / "old")
        os.rename(stage / "new", output)
    except BaseException:
        _put_back(stage, output)
        raise
    sync(output.parent)


@contextmanager
def staged_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Gives a folder to fill, which becomes ``output`` if the block ends well.

    If it does not, for whatever reason, ``output`` is as it was before. The stage stands
    beside it, on the same file system, so that putting it into place is a rename.

    Raises:
        UsageError: ``output`` exists, is not empty, and ``overwrite`` is False; or another
            process is about to make it.
        MachineError: The disk is full or the place cannot be written.
    """
    output = Path(os.path.realpath(output))
    with machine_errors(output), _parents_of(output), _stage_of(output) as stage:
        _refuse_existing(output, overwrite)
        new = stage / "new"
        new.mkdir()
        yield new
        _sync_tree(new)
        _refuse_existing(output, overwrite)
        _publish(stage, output)


@contextmanager
def _parents_of(output: Path) -> Iterator[None]:
    """Makes the folders above ``output``; those that stay empty are removed again."""
    missing = [folder for folder in output.parents if not folder.exists()]
    with undone(partial(_remove_empty, missing)):
        output.parent.mkdir(parents=True, exist_ok=True)
        yield


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _stage_of(output: Path) -> Iterator[Path]:
    """Gives the stage of ``output``, which only one process has at a time."""
    stage = output.with_name(f".{output.name}.mpqc-stage")
    lock = claim(stage)
    if lock is None:
        raise UsageError(
            f"another process is writing the output {output}",
            hint="wait for it, or choose another output with -o",
        )
    with undone(partial(_leave, stage, output, lock)):
        _clear(stage, output)
        yield stage


def _leave(stage: Path, output: Path, lock: int) -> None:
    """Removes the stage, unless it holds the only copy of what was there before."""
    _put_back(stage, output)
    if os.path.lexists(output) or not (stage / "old").exists():
        release(stage, lock)
    else:
        os.close(lock)

"""Output folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import MachineError, UsageError

_MARK = ".mpqc-stage-"  # .<name>.mpqc-stage-<pid>-<random>
_MACHINE_HINTS = {
    errno.ENOSPC: "the disk is full; free some space or choose another output",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another output",
    errno.EFBIG: "a file grew beyond the allowed size (see: ulimit -f)",
    errno.EROFS: "the file system is read-only; choose another output",
    errno.EACCES: "no permission to write there; choose another output",
    errno.EPERM: "no permission to write there; choose another output",
    errno.EMFILE: "too many open files (see: ulimit -n)",
    errno.EIO: "the disk reports an input/output error",
    errno.EEXIST: "a part of the path is a file; choose another output",
    errno.ENOTDIR: "a part of the path is a file; choose another output",
    errno.ENAMETOOLONG: "choose a shorter name",
}


_ALWAYS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors reports the file system


def _errno_of(error: Exception, path: Path) -> int | None:
    """Returns the errno if ``error`` is about the place that ``path`` is written to."""
    if not isinstance(error, OSError):
        match = _RUST_ERROR.search(str(error))
        return int(match.group(1)) if match else None
    if error.errno in _ALWAYS or error.filename is None:
        return error.errno
    named = Path(os.path.abspath(os.fsdecode(error.filename)))
    return error.errno if named.is_relative_to(Path(os.path.abspath(path)).parent) else None


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turns failures of the file system while writing ``path`` into MachineError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _errno_of(error, path)
        if code not in _MACHINE_HINTS:
            raise
        raise MachineError(
            f"cannot write {path}: {os.strerror(code)}", hint=_MACHINE_HINTS[code]
        ) from error


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


def is_alive(pid: int) -> bool:
    """Tells whether a process with this number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _put_back(stage: Path, output: Path) -> None:
    """Undoes a replacement that stopped half way."""
    if (stage / "old").is_dir() and not os.path.lexists(output):
        os.rename(stage / "old", output)


def _remove_stale(output: Path) -> None:
    """Removes the stages of a killed process, and restores outputs that it had moved aside."""
    if not output.parent.is_dir():
        return
    start = f".{output.name}{_MARK}"
    for stage in sorted(output.parent.iterdir()):
        pid = stage.name.removeprefix(start).partition("-")[0]
        if stage.name.startswith(start) and pid.isdigit() and not is_alive(int(pid)):
            _put_back(stage, output)
            shutil.rmtree(stage, ignore_errors=True)


def _sync(path: Path) -> None:
    """Makes a file or folder survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _publish(stage: Path, output: Path) -> None:
    """Renames the staged folder into place; on failure the old folder is back."""
    try:
        if output.is_dir():
            os.rename(output, stage / "old")
        os.rename(stage / "new", output)
    except BaseException:
        _put_back(stage, output)
        raise
    _sync(output.parent)


@contextmanager
def staged_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Gives a folder to fill, which becomes ``output`` if the block ends well.

    If it does not, for whatever reason, ``output`` is as it was before. The stage stands
    beside it, on the same file system, so that putting it into place is a rename.

    Raises:
        UsageError: ``output`` exists, is not empty, and ``overwrite`` is False.
        MachineError: The disk is full or the place cannot be written.
    """
    output = Path(os.path.realpath(output))
    with machine_errors(output):
        _remove_stale(output)
        _refuse_existing(output, overwrite)
        output.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{output.name}{_MARK}{os.getpid()}-"
        stage = Path(tempfile.mkdtemp(prefix=prefix, dir=output.parent))
        try:
            new = stage / "new"
            new.mkdir()
            yield new
            _sync_tree(new)
            _refuse_existing(output, overwrite)
            _publish(stage, output)
        finally:
            if os.path.lexists(output) or not (stage / "old").exists():
                shutil.rmtree(stage, ignore_errors=True)

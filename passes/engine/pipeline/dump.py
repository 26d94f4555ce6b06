"""Dumps: the state between two passes as ordinary files, from which a run can continue.

A folder of dumps holds, for the pass at place ``NNN``, ``NNN_<pass>.onnx`` (annotations in its
metadata) and ``NNN_<pass>.safetensors`` (arrays that annotations speak of), the tensors that
dumps share, the stats files by content, and ``run.json``. Nothing in it names a place outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ....ir import (
    ArrayStore,
    InputError,
    UsageError,
    machine_errors,
    read_model,
    temporary_folder,
    write_model,
)
from ....ir.atomic_file import put_in_place, replacing
from ....ir.sealed_file import read_seal
from .base import Pass, PassContext
from .spec import parse_passes, print_passes

FORMAT = 1
RUN = "run.json"
_SHARED = "data"
_TENSOR = re.compile(rb"data/([0-9a-f]{64})\.bin")
_LARGEST_RUN = 64 << 20  # bytes of run.json; ours are a few kilobytes
_HINT = "mpqc opt reads what --dump-after-each writes"


@dataclass(frozen=True)
class Dump:
    """The state after a pass.

    Attributes:
        model: The graph.
        arrays: The side store.
        pipeline: The whole pipeline, as text.
        position: How many of its passes have run.
        settings: The tools' record of how to continue.
        report: The facts that the passes so far reported.
    """

    model: ir.Model
    arrays: ArrayStore
    pipeline: str
    position: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def remaining(self) -> str:
        """The passes still to run, as text; empty at the end."""
        return print_passes(parse_passes(self.pipeline)[self.position :])


def dump_name(index: int, pass_name: str) -> str:
    """Returns the file name, without suffix, of the dump after the pass at ``index``."""
    return f"{index:03d}_{pass_name}"


def check_folder(folder: Path, pipeline: str, settings: Mapping[str, Any]) -> None:
    """Refuses a folder that holds the dumps of another run.

    Raises:
        UsageError: It does.
    """
    if not (folder / RUN).exists():
        return
    run = _read_run(folder)
    if (run["pipeline"], run["settings"]) != (pipeline, _plain(settings)):
        hint = "choose a new folder, or delete this one"
        raise UsageError(f"{folder} holds the dumps of another run", hint=hint)


def write_dump(
    folder: Path,
    model: ir.Model,
    context: PassContext,
    *,
    pipeline: str,
    index: int,
    name: str,
    settings: Mapping[str, Any],
) -> Path:
    """Writes the state after a pass, adding to the folder's earlier dumps of the same run.

    Args:
        folder: Where dumps go; made when missing.
        model: The graph.
        context: Supplies the arrays and the report.
        pipeline: The whole pipeline as text.
        index: Place of the pass in it.
        name: Name of the pass.
        settings: The tools' record of how to continue; plain JSON.

    Returns:
        The path of the dump's ``.onnx`` file.
    """
    path = folder / f"{dump_name(index, name)}.onnx"
    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_model(model, path, shared=folder / _SHARED)
        entry = {
            "position": index + 1,
            "arrays": _write_arrays(context.arrays, path.with_suffix(".safetensors")),
            "mounted": [_keep(file, folder) for file in sorted(context.arrays.files())],
            "report": context.report,
        }
        dumps = _read_run(folder)["dumps"] if (folder / RUN).exists() else {}
        run = {"format": FORMAT, "pipeline": pipeline, "settings": settings}
        _write_run(folder, {**run, "dumps": {**dumps, path.name: entry}})
    return path


def _write_arrays(arrays: ArrayStore, path: Path) -> str | None:
    if not arrays.in_memory():
        path.unlink(missing_ok=True)
        return None
    arrays.save(path, path.stem)
    return path.name


def _content_name(path: Path) -> str:
    seal = read_seal(path)
    return f"stats-{seal.key}-{seal.checksum}.safetensors"


def _keep(path: Path, folder: Path) -> str:
    """Puts a stats file into the folder, named by its content; returns that name."""
    name = _content_name(path)
    if not (folder / name).exists():
        with temporary_folder(folder) as stage:
            try:
                os.link(path, stage / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, stage / name)
            put_in_place(stage / name, folder / name)
    return name


def _plain(value: Any) -> Any:
    """Returns ``value`` as JSON gives it back."""
    return json.loads(json.dumps(value, default=_scalar))


def _scalar(value: Any) -> Any:
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written to {RUN}")


def _write_run(folder: Path, run: Mapping[str, Any]) -> None:
    text = json.dumps(run, indent=1, default=_scalar) + "\n"
    with replacing(folder / RUN) as file:
        file.write(text.encode())


def _read_run(folder: Path) -> dict[str, Any]:
    """Reads ``run.json``, trusting nothing in it."""
    path = folder / RUN
    if not path.is_file():
        raise InputError(f"no {RUN} in {folder}, so it holds no dumps", hint=_HINT)
    if path.stat().st_size > _LARGEST_RUN:
        raise InputError(f"{path} is too large to be one of ours", hint=_HINT)
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint=_HINT) from error
    kinds = {"format": int, "pipeline": str, "settings": dict, "dumps": dict}
    _need(run, kinds, path)
    if run["format"] != FORMAT:
        raise InputError(f"{path} has format {run['format']}, this mpqc reads {FORMAT}")
    return dict(run)


def _need(record: Any, kinds: Mapping[str, Any], path: Path) -> None:
    """Refuses a JSON value that is not an object with fields of these kinds."""
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected an object", hint=_HINT)
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind) or isinstance(record.get(key), bool):
            raise InputError(f"{path}: {key!r} is missing or of the wrong kind", hint=_HINT)


def read_dump(path: Path) -> Dump:
    """Reads a dump.

    Args:
        path: The ``.onnx`` file in a folder of dumps, wherever that folder is by now.

    Raises:
        InputError: The dump is incomplete, damaged or no dump at all.
        UsageError: Its pipeline names a pass that does not exist.
    """
    path = path.absolute()
    run = _read_run(path.parent)
    entry = run["dumps"].get(path.name)
    if entry is None:
        known = ", ".join(sorted(map(str, run["dumps"])))
        raise InputError(f"{RUN} knows no dump {path.name}", hint=f"it knows: {known}")
    kinds = {"position": int, "arrays": (str, type(None)), "mounted": list, "report": dict}
    _need(entry, kinds, path.parent / RUN)
    _check_position(parse_passes(run["pipeline"]), entry["position"], path)
    _check_report(entry["report"], path.parent / RUN)
    arrays = _read_arrays(entry, path.parent)
    model = read_model(path)
    _check_tensors(path)
    return Dump(
        model, arrays, run["pipeline"], entry["position"], run["settings"], entry["report"]
    )


def _check_position(passes: tuple[Pass, ...], position: int, path: Path) -> None:
    inside = 0 < position <= len(passes)
    if not inside or path.stem != dump_name(position - 1, passes[position - 1].name):
        raise InputError(f"{path.parent / RUN} and the name {path.name} disagree", hint=_HINT)


def _check_report(report: Mapping[str, Any], run: Path) -> None:
    """Refuses a report whose parts, one for each pass, are no objects or lists."""
    for name, facts in report.items():
        if not isinstance(facts, (dict, list)):
            raise InputError(f"{run}: the report of {name[:60]!r} is no object", hint=_HINT)


def _check_tensors(path: Path) -> None:
    """Refuses a dump if a tensor file that it names is not the one that was written."""
    for digest in sorted(set(_TENSOR.findall(path.read_bytes()))):
        tensor = path.parent / _SHARED / f"{digest.decode()}.bin"
        with tensor.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest.decode():
                raise InputError(f"{tensor} is damaged: its content does not match its name")


def _read_arrays(entry: Mapping[str, Any], folder: Path) -> ArrayStore:
    arrays = ArrayStore()
    for name in entry["mounted"]:
        file = _file_in(folder, name)
        if _content_name(file) != file.name:
            raise InputError(f"{file} is damaged: its content does not match its name")
        arrays.mount(file)
    if entry.get("arrays") is not None:
        file = _file_in(folder, entry["arrays"])
        if read_seal(file).key != file.stem:
            raise InputError(f"{file} belongs to another dump")
        arrays.load(file)
    return arrays


def _file_in(folder: Path, name: Any) -> Path:
    """Returns the plain file called ``name`` in ``folder``, following no link out of it."""
    if not isinstance(name, str) or Path(name).name != name:
        raise InputError(f"{folder / RUN} names a file outside the folder: {name!r}")
    path = folder / name
    try:
        is_there = path.is_file() and not path.is_symlink()
    except OSError:  # a name that no file can have
        is_there = False
    if not is_there:
        raise InputError(
            f"{folder / RUN} names {name[:60]!r}, which is missing",
            hint="copy the whole folder of dumps",
        )
    return path

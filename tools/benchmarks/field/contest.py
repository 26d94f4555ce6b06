"""mpqc beside other people's tools: KL against stored bits over all units.

Every tool gets an environment of its own, the same calibration samples and the same model; the
result is measured in ONNX Runtime on the same chunks of text, as `mpqc eval` does it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....frontend.model_source import locate
from ....ir import InputError, MpqcError, UsageError
from ...comparison.kept import Kept
from ...export import export_folder
from ...progress import choose_progress
from ..results import given_in, show
from . import table
from .entry import KNOWN, Entry, read_entries
from .environment import prepare, run_script
from .measured_form import Form, has_own_file, own_file, put_back
from .peers.exchange import Job

_COMMON = ("model", "calibration", "text", "samples", "eval_samples", "sequence_length")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("model", metavar="HF_FOLDER", type=Path, help="config and safetensors")
    parser.add_argument("--calibration", metavar="PATH", type=Path, nargs="+", required=True)
    parser.add_argument("--text", metavar="PATH", type=Path, nargs="+", required=True)
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        "--onnx", metavar="PATH", type=Path, help="the model exported already (exports it)"
    )
    parser.add_argument(
        "--compared",
        metavar="FILE",
        type=Path,
        help="compare.json of mpqc compare",
    )
    parser.add_argument("--only", metavar="WORD", nargs="+", default=[], help="in the name")
    parser.add_argument("--venvs", metavar="DIR", type=Path, help="environments (DIR/venvs)")
    parser.add_argument("--peers", metavar="FILE", type=Path, default=KNOWN)
    parser.add_argument("--samples", metavar="N", type=int, default=128)
    parser.add_argument("--eval-samples", metavar="N", type=int, default=8)
    parser.add_argument("--sequence-length", metavar="L", type=int, default=512)
    parser.add_argument("--timeout", metavar="S", type=float, default=1800.0)
    parser.add_argument("--install-only", action="store_true", help="make environments only")


def run(chosen: argparse.Namespace) -> None:
    """Runs every entry that has no result yet, and shows them all."""
    entries = list(_chosen(chosen))
    if chosen.install_only:
        for entry in entries:
            _python(entry, chosen)
        return
    kept = Kept(chosen.output / "field.json", given_in(chosen, _COMMON))
    progress = choose_progress()
    for entry in entries:
        missing = [rest for rest in entry.rest if _is_missing(kept, entry.label(rest))]
        if not missing:
            progress.say(f"{entry.label(entry.rest[0])}: measured already")
            continue
        progress.say(f"{entry.label(missing[0])}: running")
        for label, facts in _measured(entry, missing, chosen):
            kept.put(label, facts)
        table.write(kept.facts, chosen.compared, chosen.output)
    show(chosen.output, "field", table.table(kept.facts, chosen.compared))


def _chosen(chosen: argparse.Namespace) -> Iterator[Entry]:
    entries = read_entries(chosen.peers)
    words = [word.lower() for word in chosen.only]
    found = [one for one in entries if not words or any(word in one.folder for word in words)]
    if not found:
        names = ", ".join(one.folder for one in entries)
        raise UsageError("no entry has such a name", hint=f"there are {names}")
    yield from found


def _is_missing(kept: Kept, label: str) -> bool:
    return "kl" not in kept.facts.get(label, {})


def _measured(
    entry: Entry, widths: list[int], chosen: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the facts of each row; a tool that fails has its last words as facts."""
    onnx = _exported(chosen)
    work = chosen.output / "work" / entry.folder
    shutil.rmtree(work, ignore_errors=True)
    waiting = list(widths)
    try:
        seconds = _made(entry, onnx, work, chosen)
        while waiting:
            facts = _evaluated(_form(work, onnx, waiting[0], chosen), onnx, chosen)
            facts |= {"peer": entry.peer.title, "seconds": seconds}
            yield entry.label(waiting.pop(0)), facts
    except MpqcError as error:
        for rest in waiting:
            yield entry.label(rest), {"peer": entry.peer.title, "failed": error.message}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _exported(chosen: argparse.Namespace) -> Path:
    folder: Path = chosen.onnx or chosen.output / "onnx"
    if not folder.exists():
        export_folder(chosen.model, folder)
    found = locate(folder).onnx
    if found is None:
        raise InputError(f"{folder} holds no ONNX model")
    return found


def _made(entry: Entry, onnx: Path, work: Path, chosen: argparse.Namespace) -> float:
    python = _python(entry, chosen)
    (work / "made").mkdir(parents=True)
    model, made = chosen.model.resolve(), (work / "made").resolve()
    job = Job(model, onnx.resolve(), _ids(onnx, chosen), entry.settings, made)
    log = chosen.output / "logs" / f"{entry.folder}.log"
    return run_script(python, entry.peer, job, log, chosen.timeout)


def _python(entry: Entry, chosen: argparse.Namespace) -> Path:
    venvs: Path = chosen.venvs or chosen.output / "venvs"
    log = chosen.output / "logs" / f"{entry.peer.name}.pip.log"
    return prepare(entry.peer, (venvs / entry.peer.name).absolute(), log)


def _ids(onnx: Path, chosen: argparse.Namespace) -> Path:
    """Writes the token ids that all tools calibrate on."""
    import numpy as np

    from ....frontend.samples import SampleMaker
    from ....ir import read_model

    path: Path = chosen.output / "calibration.npy"
    maker = SampleMaker.of(read_model(onnx), locate(onnx))
    made = maker.calibration(
        chosen.calibration, samples=chosen.samples, sequence_length=chosen.sequence_length
    )
    assert maker.tokens is not None
    np.save(path, np.concatenate([feed[maker.tokens.name] for feed in made.training]))
    return path.resolve()


def _form(work: Path, onnx: Path, rest: int, chosen: argparse.Namespace) -> Form:
    made = work / "made"
    if has_own_file(made):
        return own_file(made, onnx)
    folder = work / f"rest-{rest}"
    folder.mkdir()
    return put_back(made, chosen.model, rest, folder)


def _evaluated(form: Form, onnx: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    from ...evaluate import evaluate

    found = evaluate(
        onnx,
        form.onnx,
        chosen.text,
        samples=chosen.eval_samples,
        sequence_length=chosen.sequence_length,
        progress=choose_progress(),
    )
    how = "weights put back" if form.file_bits is None else "its own file"
    facts = {**found.facts(), "bits": form.bits, "measured": how}
    return facts if form.file_bits is None else {**facts, "file_bits": form.file_bits}

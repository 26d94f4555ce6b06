"""mpqc beside ONNX Runtime's own quantizers, on models of many kinds.

Each model is compiled at several budgets and to at most the size of what each of
the others makes of it, from inputs that look like what it reads, and compared with the
original on others. Goes on where it was after a break.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ....backend.onnxruntime.runner import open_session
from ....frontend.model_inputs import model_inputs
from ....ir import Feeds, MpqcError, read_model, temporary_folder
from ....ir.analysis.storage import stored
from ....ir.model_checks import inline_functions
from ...api import CompileResult
from ...api import compile as compile_model
from ...comparison.files import write_whole
from ...comparison.kept import Kept
from ...inspection import model_bytes
from ...option_fields import add_options as add_shared
from ...options import CompileOptions
from ...progress import choose_progress
from ..results import given_in
from .inputs import natural_feeds
from .models import Entry, entries
from .page import AT_SIZE, document, summary, table
from .rivals import RIVALS
from .sizing import at_most

_CALIBRATION, _HELD_OUT = 32, 16
_RUNS, _SECONDS = 5, 0.3  # of each session, at least
_INTEGERS = "uint8"  # activations, for the first budget once more
_CHOSEN_BY_TARGET = "auto"
_SMALLER = 0.95  # of the original: what is larger has not been quantized
Maker = Callable[[Path], Path]
_PROVIDER = "CPUExecutionProvider"
_SHARED = ("target", "activations")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("--only", metavar="WORD", nargs="+", default=[], help="in the name")
    parser.add_argument("--budgets", metavar="BITS", nargs="+", type=float, default=[8.5, 4.5])
    parser.add_argument("--preset", metavar="NAME", default="default")
    add_shared(parser, CompileOptions, _SHARED)
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("build/zoo"))
    parser.add_argument("--document", metavar="FILE", type=Path, help="write this")


def run(chosen: argparse.Namespace) -> None:
    """Measures every model that was not measured yet, and shows them all."""
    told = given_in(chosen, ("budgets", "preset", *_SHARED))
    kept = Kept(chosen.output / "zoo.json", told)
    progress = choose_progress()
    for entry in entries():
        if chosen.only and not any(word in entry.name for word in chosen.only):
            continue
        if entry.name in kept.facts:
            progress.say(f"{entry.name}: measured already")
            continue
        progress.say(f"{entry.name}: running")
        kept.put(entry.name, _measured(entry, chosen))
    if chosen.document is not None:
        write_whole(chosen.document, document(kept.facts))
    print(table(kept.facts), end="")
    print(summary(kept.facts))


def _measured(entry: Entry, chosen: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one model: of the original, of mpqc's results, of the others'."""
    path = entry.make(chosen.output / "models")
    inputs = model_inputs(read_model(path))
    training = natural_feeds(inputs, entry, _CALIBRATION, seed=0)
    held_out = natural_feeds(inputs, entry, _HELD_OUT, seed=1)
    with temporary_folder() as scratch:
        exact = _outputs(path, held_out)
        facts: dict[str, Any] = {"original": _size(path)}
        arrays = scratch / "samples.npz"
        np.savez(arrays, allow_pickle=False, **_stacked(training))

        def compiled(budget: float, output: Path, **more: str) -> CompileResult:
            return compile_model(
                path,
                budget=budget,
                output=output.with_suffix(""),
                calibration=[arrays],
                samples=_CALIBRATION,
                preset=chosen.preset,
                cache=scratch / "cache",
                **{name: getattr(chosen, name) for name in _SHARED} | more,
            )

        def judged(name: str, make: Maker) -> dict[str, Any]:
            output = scratch / f"{len(facts)}.onnx"
            facts[name] = found = _judged(make, path, output, held_out, exact)
            return found

        for budget in chosen.budgets:
            judged(f"mpqc {budget:g}", partial(_model, compiled, budget))
        if chosen.activations in (None, _CHOSEN_BY_TARGET):
            integers = partial(compiled, activations=_INTEGERS)
            name = f"mpqc {chosen.budgets[0]:g}, {_INTEGERS}"
            judged(name, partial(_model, integers, chosen.budgets[0]))
        for name, rival in RIVALS.items():
            other = judged(name, partial(rival, path, training))
            if other.get("bytes", math.inf) < _SMALLER * facts["original"]["bytes"]:
                judged(f"{AT_SIZE} {name}", partial(at_most, compiled, other["bytes"]))
    return facts


def _model(compiled: Callable[..., CompileResult], budget: float, output: Path) -> Path:
    return compiled(budget, output).model


def _judged(
    make: Maker,
    original: Path,
    output: Path,
    held_out: Sequence[Feeds],
    exact: Sequence[list[np.ndarray]],
) -> dict[str, Any]:
    """Makes one result and measures it; what cannot be made has a reason instead."""
    begun = time.perf_counter()
    try:
        output = make(output)
        seconds = time.perf_counter() - begun
        found = _outputs(output, held_out)
        return {
            **_size(output),
            **_errors(exact, found),
            "made": round(seconds, 1),
            "time": _time_ratio(original, output, held_out[0]),
        }
    except MpqcError as error:
        return {"failed": error.message}
    except Exception as error:  # other people's tools fail in ways of their own
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def _stacked(feeds: Sequence[Feeds]) -> dict[str, np.ndarray]:
    """Returns arrays with an axis in front that counts samples."""
    return {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}


def _size(path: Path) -> dict[str, Any]:
    model = read_model(path)
    inline_functions(model)
    return {"bytes": model_bytes(path), "bits": stored(model).whole_file_bits}


def _outputs(path: Path, feeds: Sequence[Feeds]) -> list[list[np.ndarray]]:
    with open_session(path, _PROVIDER, threads=1) as session:
        return [list(session.run(feed).values()) for feed in feeds]


def _errors(
    exact: Sequence[list[np.ndarray]], found: Sequence[list[np.ndarray]]
) -> dict[str, float]:
    """Returns the relative error over all float outputs, and how often the largest agrees."""
    squares, total, same, places = 0.0, 0.0, 0, 0
    for wanted, got in zip(exact, found, strict=True):
        for before, after in zip(wanted, got, strict=True):
            if before.dtype.kind != "f" or before.shape != after.shape:
                same += int(np.array_equal(before, after))
                places += 1
                continue
            before, after = before.astype(np.float64), after.astype(np.float64)
            scale = float(np.square(before).sum())
            squares += float(np.square(after - before).sum()) / max(scale, 1e-30)
            total += 1
            agreed = before.argmax(-1) == after.argmax(-1) if before.ndim else np.array([True])
            same, places = same + int(agreed.sum()), places + agreed.size
    return {
        "error": float(np.sqrt(squares / max(total, 1))),
        "agreement": same / max(places, 1),
    }


def _time_ratio(original: Path, result: Path, feed: Feeds) -> float:
    """Returns the time of the result over that of the original, the best of runs in turns."""
    best = [np.inf, np.inf]
    with (
        open_session(original, _PROVIDER, threads=1) as before,
        open_session(result, _PROVIDER, threads=1) as after,
    ):
        runs, started = 0, time.perf_counter()
        while runs < _RUNS or time.perf_counter() - started < 2 * _SECONDS:
            for at, session in enumerate((before, after)):
                begun = time.perf_counter()
                session.run(feed)
                best[at] = min(best[at], time.perf_counter() - begun)
            runs += 1
    return float(best[1] / best[0])

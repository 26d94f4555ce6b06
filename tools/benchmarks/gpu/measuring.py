"""One form of a model on a device: how far from the CPU, and how quick."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....backend import tensorrt
from ....backend.onnxruntime.runner import open_session
from ....passes.engine.numerics.divergence import kl_divergence, relative_error
from .kit import BY_RUNTIME, BY_STANDARD, Form, Kit, rows_of

_WARM_UP, _LEAST, _MOST = 3, 5, 200  # runs
_SECONDS = 1.0  # of runs, after which there is no other


def measure_file(kit: Kit, form: Form, provider: str) -> dict[str, Any]:
    """Runs a file in ONNX Runtime.

    Returns:
        ``load`` (seconds), ``fallen_back`` (nodes on the CPU instead, by operator) and
        ``runs``: by run, ``distance`` from the same file on the CPU and ``time``.

    Raises:
        InputError: The runtime refuses the model.
        MachineError: The provider does not work.
    """
    begun = time.perf_counter()
    with open_session(kit.model(form), provider, exact=True) as session:
        loaded = time.perf_counter() - begun
        fallen = Counter(op for op, _ in session.fallen_back())
        runs = {}
        for run in kit.runs:
            feed = kit.feed(form, run)
            found = session.run(feed, [form.output])[form.output]
            runs[run] = {
                **distance(kit.reference(form, run), rows_of(found), logits=form.logits),
                **times(session.bound(feed)),
            }
    return {"load": round(loaded, 2), "fallen_back": dict(fallen), "runs": runs}


def measure_engine(kit: Kit, form: Form) -> dict[str, Any]:
    """Builds an engine of a file in TensorRT, and runs it.

    Returns:
        ``build`` and ``load`` (seconds), ``products`` (by type), ``kinds`` (in the engine's
        words), ``layers``, and ``runs`` as of a file, with the distance from the graph as the
        standard has it, and under ``runtime`` from ONNX Runtime on the CPU.

    Raises:
        InputError: TensorRT does not take the graph.
        MachineError: There is no TensorRT or no device, or it fails.
    """
    feeds = {run: kit.feed(form, run) for run in kit.runs}
    shapes = [{name: one.shape for name, one in feed.items()} for feed in feeds.values()]
    begun = time.perf_counter()
    plan = tensorrt.build(kit.model(form), shapes)
    built = time.perf_counter()
    with tensorrt.open_engine(plan) as engine:
        loaded = time.perf_counter()
        told = tensorrt.products(engine.account())
        runs = {}
        for at, (run, feed) in enumerate(feeds.items()):
            engine.bind(at, feed)
            engine.run()
            found = rows_of(engine.output(form.output))
            by_standard, by_runtime = (
                distance(kit.reference(form, run, by), found, logits=form.logits)
                for by in (BY_STANDARD, BY_RUNTIME)
            )
            runs[run] = {**by_standard, "runtime": by_runtime, **times(engine.run)}
    return {
        "build": round(built - begun, 1),
        "load": round(loaded - built, 2),
        "size": len(plan),
        "layers": told.layers,
        "products": told.by_type,
        "kinds": told.kinds,
        "runs": runs,
    }


def distance(wanted: np.ndarray, found: np.ndarray, *, logits: bool) -> dict[str, Any]:
    """Returns how far rows [rows, width] are from others.

    Returns:
        ``largest`` difference, ``scale`` (the largest entry), ``error`` (relative, Euclidean),
        and of logits ``kl`` in nats a row. Not finite is None.
    """
    if wanted.shape != found.shape:
        return {"shape": f"{found.shape} instead of {wanted.shape}"}
    facts = {
        "largest": float(np.abs(found - wanted).max(initial=0.0)),
        "scale": float(np.abs(wanted).max(initial=0.0)),
        "error": relative_error(wanted, found),
    }
    if logits:
        facts["kl"] = float(kl_divergence(wanted, found).mean())
    return {name: value if np.isfinite(value) else None for name, value in facts.items()}


def times(run: Callable[[], None]) -> dict[str, Any]:
    """Returns the median ``milliseconds`` of how many ``calls``, after some to warm up."""
    for _ in range(_WARM_UP):
        run()
    found: list[float] = []
    while len(found) < _LEAST or (sum(found) < _SECONDS and len(found) < _MOST):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return {"milliseconds": statistics.median(found) * 1e3, "calls": len(found)}


def size_of(path: Path) -> int:
    """Returns the bytes of all files in a folder."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def ratios(runs: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """Returns the time of each run relative to that of another form."""
    return {
        run: facts["milliseconds"] / base[run]["milliseconds"]
        for run, facts in runs.items()
        if run in base
    }

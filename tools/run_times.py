"""How long the original and the result take, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..backend.onnxruntime.runner import RuntimeSession, open_session
from ..frontend.model_inputs import model_inputs
from ..frontend.workload_feeds import workload_feed
from ..ir import Feeds, MpqcError, read_model
from ..ir.workloads import workloads
from ..passes.engine.pipeline.base import PassContext
from .costs import THREADS
from .inspection import model_bytes

_ENOUGH, _LEAST_RUNS, _MOST_RUNS = 0.5, 2, 50  # seconds and runs of each, after the first
_LONG = 5.0  # seconds of a run after which there is no other
_LARGEST = 2 << 30  # bytes of an original that is loaded once more only to be timed


def run_times(result: Path, context: PassContext) -> dict[str, dict[str, float]]:
    """Runs the two in turns, so that whatever else the machine does slows both.

    Args:
        result: The finished model.
        context: Supplies the original, the samples, and what was predicted.

    Returns:
        By workload, in milliseconds: ``original`` and ``result``, and ``predicted`` where the
        kernels of the result have known times. Nothing for a workload that cannot be fed.
    """
    original, calibration = context.original, context.calibration
    if original is None or calibration is None or model_bytes(original) > _LARGEST:
        return {}
    if context.capabilities.stands_in:
        return {}
    inputs = model_inputs(read_model(original))
    predicted = timed_products(context.report)
    found = {}
    provider = context.capabilities.provider
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(open_session(path, provider, threads=THREADS))
            for name, path in (("original", original), ("result", result))
        }
        for run in workloads(calibration):
            feed = workload_feed(inputs, calibration.feeds[0], run)
            try:
                times = _in_turns(sessions, feed)
            except MpqcError:  # it cannot be fed so: the cache has another form
                continue
            found[run.name] = {**times, **_predicted(times, predicted.get(run.name))}
    return found


def timed_products(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns by workload what products are predicted to take; empty if no pass did.

    Nothing, either, if a pass put kernels in that no prediction knows of (``untimed``).
    """
    told = [one for one in report.values() if isinstance(one, dict)]
    if any(one.get("untimed") for one in told):
        return {}
    return next((one["time"]["products"] for one in told if "time" in one), {})


def _in_turns(sessions: Mapping[str, RuntimeSession], feed: Feeds) -> dict[str, float]:
    """Returns the least milliseconds of each session, of the first run if that is long."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    spent = 0.0
    for runs in range(_MOST_RUNS):
        for name, session in sessions.items():
            begun = time.perf_counter()
            session.run(feed)
            times[name].append(time.perf_counter() - begun)
            spent += times[name][-1]
        if spent > (_LONG if runs < _LEAST_RUNS else _ENOUGH) * len(times):
            break
    return {name: round(min(some) * 1e3, 3) for name, some in times.items()}


def _predicted(times: Mapping[str, float], products: Any) -> dict[str, float]:
    """Returns what the result was to take: what the original takes, with other products."""
    if not products:
        return {}
    saved = (products["original"] - products["microseconds"]) / 1e3
    return {"predicted": round(max(times["original"] - saved, 0.0), 3)}

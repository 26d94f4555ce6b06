"""gpu run: step after step, each kept as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ....backend.gpu import driver_release, nvidia_driver
from ....backend.onnxruntime.capabilities import load
from ....backend.onnxruntime.probing import in_plain_words, probe
from ....backend.packages import PACKAGES, Package
from ....ir import MachineError, MpqcError
from ....passes.engine.pipeline.progress import Progress
from ...comparison.kept import Kept
from ...manifest import versions
from .compiling import measure_compile, measure_shape
from .kit import CUDA, HALF, ORIGINAL, TENSORRT, UNIFORM, Form, Kit
from .measuring import measure_engine, measure_file

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
DEVICE, ROWS, ENGINE, IN_RUNTIME = "device", "rows", "engine", "engine in onnxruntime"
FILE = "file "
COMPILE, COMPILE_SHAPE = "compile", "compile shape "
_COMPILED_ON = {"cuda": "cuda:0", "cpu": "cpu"}
FAILED = "failed"
_ENDLESS = "it was begun and did not end"
_CPU = "cpu"
_TENSORRT_PROVIDER = "TensorrtExecutionProvider"
# What is most worth knowing first: the time may not last for all.
_ORDER = (HALF, CUDA, UNIFORM, ORIGINAL, TENSORRT)
Step = Callable[[], dict[str, Any]]


def steps(kit: Kit, provider: str, shape: str, progress: Progress) -> dict[str, Step]:
    """Returns what there is to do, in order, by name.

    Args:
        kit: What was prepared.
        provider: ``cuda``, or ``cpu`` for all that ONNX Runtime does, on the CPU.
        shape: The shape of random weights to compile, besides the model of the kit.
        progress: Where compilations say how far they are.
    """
    name = PROVIDERS[provider]
    found: dict[str, Step] = {
        DEVICE: partial(device, provider),
        ROWS: partial(rows, provider),
    }
    files = [one for one in _ORDER if one in kit.forms]
    for form in files:
        found[f"{FILE}{form}"] = partial(measure_file, kit, kit.forms[form], name)
        if form == CUDA and TENSORRT in kit.forms:
            found[ENGINE] = partial(measure_engine, kit, kit.forms[TENSORRT])
    if TENSORRT in kit.forms:
        found.setdefault(ENGINE, partial(measure_engine, kit, kit.forms[TENSORRT]))
        if provider != _CPU:
            found[IN_RUNTIME] = partial(_in_runtime, kit, kit.forms[TENSORRT])
    on = _COMPILED_ON[provider]
    if ORIGINAL in kit.forms:
        found[COMPILE] = partial(measure_compile, kit, on, progress)
    found[f"{COMPILE_SHAPE}{shape}"] = partial(measure_shape, shape, on, progress)
    return found


def run_steps(
    wanted: Mapping[str, Step],
    kept: Kept,
    *,
    seconds: float,
    again: bool,
    progress: Progress,
) -> list[str]:
    """Does what has not been done.

    A step that fails is kept with the reason, in one line, and so is one that takes the whole
    process down: it is named as begun before it begins.

    Args:
        wanted: The steps, by name.
        kept: Where what they find is kept.
        seconds: After so many, no other step begins.
        again: Whether to try steps once more that failed.
        progress: Where to say what is done.

    Returns:
        The steps that time was too short for.
    """
    started = time.monotonic()
    left = []
    for name, step in wanted.items():
        before = kept.facts.get(name)
        if before is not None and not (again and FAILED in before):
            progress.say(f"{name}: there already")
            continue
        if time.monotonic() - started >= seconds:
            left.append(name)
            continue
        progress.say(f"{name}: running")
        kept.put(name, {FAILED: _ENDLESS})
        begun = time.monotonic()
        facts = _tried(step)
        kept.put(name, {**facts, "seconds": round(time.monotonic() - begun, 2)})
        if FAILED in facts:
            progress.say(f"{name}: {facts[FAILED]}")
    return left


def _tried(step: Step) -> dict[str, Any]:
    """Returns what a step finds, or why it fails."""
    try:
        return step()
    except MpqcError as error:
        return {FAILED: in_plain_words(error.message)}
    except Exception as error:  # whatever a device's libraries do: the others are worth a try
        return {FAILED: in_plain_words(f"{type(error).__name__}: {error}")}


def device(provider: str) -> dict[str, Any]:
    """Returns what everything runs on.

    Raises:
        MachineError: A device was asked for, and there is none.
    """
    facts: dict[str, Any] = {
        "provider": PROVIDERS[provider],
        "versions": versions(),
        "packages": {
            one.title: {
                "version": " and ".join(one.installed().values()),
                "why": one.problem(),
            }
            for one in PACKAGES
        },
    }
    if provider == _CPU:
        return {**facts, "dry_run": True, "gpus": []}
    driver = nvidia_driver()
    if driver is None:
        raise MachineError("there is no NVIDIA device, or no driver")
    gpus = [vars(one) for one in driver.gpus]
    return {**facts, "gpus": gpus, "cuda": driver.cuda, "driver": driver_release()}


def _installed(package: Package) -> dict[str, str | None]:
    version = " and ".join(package.installed().values())
    return {"version": version, "problem": package.problem()}


def rows(provider: str) -> dict[str, Any]:
    """Tries every row of the target ort-cuda, as ``mpqc doctor --probe ort-cuda`` does."""
    table = load(CUDA)
    if provider == _CPU:
        table = replace(table, target="ort-cpu", provider=PROVIDERS[_CPU])
    found = probe(table, timed=True)
    return {
        "rows": [
            {
                "row": one.name,
                "used": one.row.offered,
                "verdict": one.verdict,
                "detail": one.detail,
                "error": one.error,
                "time": one.time,
            }
            for one in found
        ]
    }


def _in_runtime(kit: Kit, form: Form) -> dict[str, Any]:
    """Runs the graph for TensorRT in ONNX Runtime's provider of it."""
    return measure_file(kit, form, _TENSORRT_PROVIDER)

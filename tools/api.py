"""The Python API: ``mpqc.compile`` and ``mpqc.plan``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..frontend.model_source import Source
from ..ir import UsageError, refuse_overlap, staged_folder, temporary_folder
from ..passes.engine.pipeline.progress import SilentProgress
from .compilation import prepare
from .deployment.kind import find_kind
from .finishing import Outcome
from .given_model import check_model, find_source, from_module, is_module
from .option_fields import takes, utf8_path
from .options import CompileOptions, PlanOptions
from .planning.plan import Plan
from .settings import make_settings
from .stats_cache import stats_folder, stats_place
from .watch import Watch
from .workers import workers_for


@dataclass(frozen=True)
class CompileResult:
    """What a compilation made.

    Attributes:
        output: The new folder.
        model: The ONNX file in it.
        asked: Stored bits per weight asked for; of a size in bytes, those that it left.
        got: Stored bits per weight of the result, recomputed from its graph.
        whole_file_bits: The same with every float constant of the file counted, biases and
            weights that no kernel reads directly among them.
        resident_bits: Bits per weight in memory after loading (estimated).
        weights: Number of weights in all units.
        size: Bytes of all files.
        predicted: Predicted divergence in nats per token, or relative squared error.
        measured: How far the result is from the original, as the pipeline measured it.
        seconds: Seconds by pass.
        report: The whole content of ``mpqc.json``.
    """

    output: Path
    model: Path
    asked: float
    got: float
    whole_file_bits: float
    resident_bits: float
    weights: int
    size: int
    predicted: float | None
    measured: dict[str, Any]
    seconds: dict[str, float]
    report: dict[str, Any] = field(repr=False)


@takes(CompileOptions)
def compile(model: Any, given: CompileOptions) -> CompileResult:
    """Compiles a model to exactly a budget, for a runtime that exists.

    Args:
        model: An .onnx file, a folder with one, a Hugging Face folder, or a torch module or
            fx GraphModule (with ``example_inputs``).
        given: What it can be told.

    Raises:
        UsageError: An option is impossible, or the output exists.
        InputError: The model or the samples are broken or unsafe.
        MachineError: The machine lacks something.
        InfeasibleBudget: No choice of options fits the budget.
        ExcessLoss: The result lost more than ten times what was predicted.
        Miscompiled: A pass broke its promise, which is a bug in mpqc.
    """
    settings = make_settings(given)
    options = settings.options
    check_model(model, options)
    source = find_source(model)
    default = default_output(model, options.budget, options.file_budget)
    output = utf8_path(options.output or default)
    _refuse_bad_places(output, source, options)
    find_kind(options.for_).refuse(source or Source(Path(type(model).__name__), None, ()))
    shown = options.progress or SilentProgress()
    for line in (*settings.lines(), f"output: {output}"):
        shown.say(line)
    with (
        workers_for(options.workers, settings.device) as workers,
        staged_folder(output, overwrite=options.overwrite) as stage,
    ):
        scratch = stage.parent / "scratch"
        scratch.mkdir()
        if source is None:
            source = from_module(model, options, scratch)
        stats = stats_folder(options.cache, shown.say)
        job = prepare(source, settings, scratch, stats, shown, options, workers)
        outcome = job.run(stage)
    return _result(output, outcome)


@takes(PlanOptions)
def plan(model: Any, given: PlanOptions) -> Plan:
    """Says what ``mpqc.compile`` would take and give, and writes nothing.

    What the model needs anyway is done (a Hugging Face folder is exported, samples are made,
    the passes before the first long one run); the rest is worked out from shapes, and from a
    few seconds of measuring how quick this machine is.

    Args:
        model: As ``mpqc.compile`` takes it.
        given: What it can be told.

    Raises:
        UsageError: An option is impossible.
        InputError: The model or the samples are broken or unsafe.
        MachineError: The machine lacks something that no setting could do without.
        InfeasibleBudget: The budget cannot be met.
    """
    from .planning.look import look  # which imports torch

    settings = make_settings(CompileOptions(**_values(given)))
    options = settings.options
    check_model(model, options)
    source = find_source(model)
    find_kind(options.for_).refuse(source or Source(Path(type(model).__name__), None, ()))
    shown = options.progress or SilentProgress()
    place = stats_place(options.cache)
    with temporary_folder() as scratch:
        if source is None:
            source = from_module(model, options, scratch)
        cache = place if place is not None and place.is_dir() else None
        job = prepare(source, settings, scratch, cache, shown, Watch())
        return look(job, place or scratch)


def _values(given: PlanOptions) -> dict[str, Any]:
    return {one.name: getattr(given, one.name) for one in dataclasses.fields(given)}


def default_output(
    model: Any, budget: float | str | None, file_budget: float | str | None = None
) -> Path:
    """Returns ``<model>-3.5bit``, ``<model>-60MB`` or, of a file budget, ``...-file``."""
    asked = str(budget if budget is not None else file_budget).strip()
    label = f"{float(asked):g}bit" if asked.replace(".", "", 1).isdigit() else asked
    label += "" if file_budget is None else "-file"
    return named_after(model, label)


def named_after(model: Any, label: str) -> Path:
    """Returns ``<model>-<label>`` in the current folder."""
    if is_module(model):
        return Path(f"{type(model).__name__}-{label}")
    path = Path(model).absolute()
    stem = path.parent.name if path.name == "model.onnx" else path.stem
    return Path(f"{path.name if path.is_dir() else stem}-{label}")


def _refuse_bad_places(output: Path, source: Source | None, options: CompileOptions) -> None:
    """Refuses places to write that would destroy something that is read."""
    files: Any = options.calibration
    inputs = [*files, *([options.recipe] if options.recipe is not None else [])]
    if source is not None:
        inputs += [source.named, *source.folders, *([source.onnx] if source.onnx else [])]
    refuse_overlap(output, inputs)
    if options.dump_after_each is not None:
        dumps = Path(options.dump_after_each)
        refuse_overlap(dumps, inputs)
        if dumps.resolve() == output.resolve():
            raise UsageError("dumps and output cannot share a folder")


def _result(output: Path, outcome: Outcome) -> CompileResult:
    facts = outcome.facts
    asked = facts["asked"].get("bits")
    got = facts["got"]
    return CompileResult(
        output=output,
        model=output / outcome.model,
        asked=asked if asked is not None else got["allocated_bits"] or got["bits"],
        got=got["bits"],
        whole_file_bits=got["whole_file_bits"],
        resident_bits=got["resident_bits"],
        weights=got["weights"],
        size=outcome.size,
        predicted=facts["predicted"],
        measured=facts["measured"] or {},
        seconds=facts["timings"]["passes"],
        report=facts,
    )

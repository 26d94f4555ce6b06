"""One compilation: a model, samples and settings -> the files of a result, in a stage."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..backend.onnxruntime.capabilities import installed_runtime_problem, load
from ..backend.onnxruntime.runner import open_session
from ..backend.runner import Runner
from ..frontend.model_source import Source
from ..frontend.samples import SampleMaker
from ..ir import (
    ArrayStore,
    Calibration,
    Capabilities,
    InfeasibleBudget,
    MachineError,
    check_finite,
    find_units,
    forget_notes,
    read_model,
    refuse_quantized,
)
from ..passes.engine.execution.precision import exact_products
from ..passes.engine.pipeline.base import PassContext, Workers
from ..passes.engine.pipeline.instruments import TimePasses
from ..passes.engine.pipeline.pipeline import Pipeline
from ..passes.engine.pipeline.progress import Progress
from .budget import MOST_BITS
from .costs import costs_for, whose_times
from .deployment.kind import find_kind
from .dump_folder import prepare_dumps
from .export import export_into
from .finishing import Outcome, check_loss, finish
from .inspection import model_bytes
from .kernels import as_asked, with_smallest
from .manifest import input_facts
from .memory import check_device, check_memory
from .options import CompileOptions
from .run_times import timed_products
from .settings import CompileSettings
from .watch import Watch

_MOST_ATTEMPTS = 4
_NODE_BYTES = 1000  # first guess of what a unit's nodes take in the protobuf
_ROW_BYTES = 1500  # ... and its rows in mpqc.json and report.html
_REPORT_BYTES = 8_000
_SPARE_BYTES = 128
_NO_BITS = 1e-3  # a budget that no model meets
_SLACK = 0.005  # share of the size that may stay unused without another attempt


@dataclass(frozen=True)
class Compilation:
    """A compilation that can be run for one budget after the other.

    Attributes:
        settings: What decides the result.
        source: The ONNX model and its companions.
        calibration: Samples; None when the pipeline needs none.
        input: What ``mpqc.json`` says about the model.
        scratch: Folder for temporary files.
        cache: Folder for stats.
        progress: Where to show progress.
        watch: What the user wants to see.
        workers: Other processes that take part; None for none.
    """

    settings: CompileSettings
    source: Source
    calibration: Calibration | None
    input: dict[str, Any]
    scratch: Path
    cache: Path
    progress: Progress
    watch: Watch
    workers: Workers | None = None

    @property
    def original(self) -> Path:
        """The model as it was read."""
        assert self.source.onnx is not None
        return self.source.onnx

    def context(self, bits: float | None = None) -> PassContext:
        """Returns what passes are given that are to meet so many bits per weight."""
        options = self.settings.options
        table = table_for(options)
        if bits is not None:
            weights, budget = self.input["weights"], self.settings.budget
            saves_time = self.settings.saves_time(bits)
            table = with_smallest(
                table, options.kernels, weights, budget, bits, saves_time=saves_time
            )
        return PassContext(
            runner=Runner.of(table),
            capabilities=table,
            scratch=self.scratch,
            arrays=ArrayStore(self.scratch / "arrays"),
            calibration=self.calibration,
            cache=self.cache,
            seed=self.settings.options.seed,
            progress=self.progress,
            original=self.original,
            costs=costs_for(options.machine, table),
            device=self.settings.device,
            workers=self.workers,
        )

    def run(self, stage: Path) -> Outcome:
        """Fills ``stage`` with the result for the budget of the settings.

        Raises:
            InfeasibleBudget: It cannot be met, and nothing smaller was allowed instead.
        """
        try:
            return self._run_asked(stage)
        except InfeasibleBudget as error:
            less = self._as_small_as_possible(error)
            if less is None:
                raise
        _empty(stage)
        return less.run(stage)

    def _as_small_as_possible(self, error: InfeasibleBudget) -> Compilation | None:
        """Returns the same with the smallest budget, if that is allowed and another one."""
        asked, least = self.settings.budget, error.smallest
        if not self.settings.options.as_small_as_possible:
            return None
        if least is not None:
            self.progress.say(f"{asked} cannot be met: taking {least:g} bits per weight")
        elif asked.bits is None:
            least = _NO_BITS  # this names the smallest
        if least is None or (asked.bits is not None and asked.bits >= least):
            return None
        budget = replace(asked, bits=least, size=None)
        return replace(self, settings=replace(self.settings, budget=budget))

    def _run_asked(self, stage: Path) -> Outcome:
        if self.settings.budget.bits is not None:
            return self.run_bits(self.settings.budget.bits, stage)
        return self._run_size(self.settings.budget.size or 0, stage)

    def run_bits(self, bits: float, stage: Path) -> Outcome:
        """Fills ``stage`` with the result for ``bits`` stored bits per weight."""
        pipeline = Pipeline(self.settings.pipeline(bits))
        model, context, timer = read_foreign(self.original), self.context(bits), TimePasses()
        table = context.capabilities
        kept = {
            **self.settings.plain(),
            "input": self.input,
            "smallest_kernel": table.smallest_kernel,
            "smallest_lookup": table.smallest_lookup,
            "half": table.half,
            "computed_on": self.settings.device,
        }
        if context.costs is not None:
            kept["costs"] = context.costs.name
        instruments = self.watch.instruments(timer, context, pipeline, kept)
        if self.watch.dump_after_each is not None:
            folder = Path(self.watch.dump_after_each)
            prepare_dumps(folder, model, self.source, self.calibration)
        with exact_products():
            ran = pipeline.run(model, context, instruments)
        if context.costs is not None and timed_products(context.report):
            self._say(whose_times(context.costs))
        if self.watch.time_passes:
            self.progress.say(timer.table())
        check_loss(context, pipeline, accept=self.watch.accept_loss)
        return finish(stage, model, self.source, context, pipeline, ran, kept, timer)

    def _say(self, text: str) -> None:
        if text:
            self.progress.say(text)

    def sizes(self) -> tuple[int, int]:
        """Returns the number of weights in units, and a guess of all bytes that store none."""
        weights, rest = _sizes(read_foreign(self.original), self.source)
        return weights, rest + find_kind(self.settings.options.for_).extra()

    def _run_size(self, size: int, stage: Path) -> Outcome:
        """Looks for the bits per weight whose files are at most ``size`` bytes in all."""
        weights, rest = self.sizes()
        bits = (size - rest) * 8 / max(weights, 1)
        for attempt in range(_MOST_ATTEMPTS):
            if bits <= 0:
                break
            bits = min(bits, MOST_BITS)
            outcome = self._run_within(size, bits, stage)
            slack = size - outcome.size
            if slack >= 0 and (attempt > 0 or slack <= size * _SLACK or bits == MOST_BITS):
                return outcome
            # The overhead is known now; a few bytes stay free, for timings vary in length.
            bits += (slack - _SPARE_BYTES) * 8 / weights
            _empty(stage)
        raise too_few_bytes(size, rest)

    def _run_within(self, size: int, bits: float, stage: Path) -> Outcome:
        try:
            return self.run_bits(bits, stage)
        except InfeasibleBudget as error:
            raise InfeasibleBudget(
                f"{size} bytes for all files leave {bits:.3f} bits a weight: {error.message}",
                hint=error.hint,
                smallest=error.smallest,
            ) from error


def prepare(
    source: Source,
    settings: CompileSettings,
    scratch: Path,
    cache: Path | None,
    progress: Progress,
    watch: Watch,
    workers: Workers | None = None,
) -> Compilation:
    """Exports the model if it must be, checks it, and makes samples for it.

    Raises:
        InputError: The model is broken, quantized already, or does not fit the samples.
        MachineError: This machine cannot run the target, or has too little memory.
        UsageError: The program that the result is for cannot run what the export gave.
    """
    check_memory()
    options = settings.options
    _check_runtime(options)
    standard = not load(options.target).contrib
    source = exported(source, scratch, progress, standard=standard)
    find_kind(options.for_).refuse(source)
    assert source.onnx is not None
    model = read_foreign(source.onnx)
    check_memory(model_bytes(source.onnx))
    if _on_device(options):
        check_device(model_bytes(source.onnx))
    refuse_quantized(model)
    check_finite(model)
    calibration = SampleMaker.of(model, source, progress.say).calibration(
        settings.calibration,
        samples=options.samples,
        sequence_length=options.sequence_length,
        random=options.random_calibration,
        seed=options.seed,
    )
    _check_that_it_runs(source.onnx, options, calibration)
    return Compilation(
        settings=settings,
        source=source,
        calibration=calibration,
        input={**input_facts(source, model), "calibration": calibration_facts(calibration)},
        scratch=scratch,
        cache=cache if cache is not None else scratch / "stats",
        progress=progress,
        watch=watch,
        workers=workers,
    )


def too_few_bytes(size: int, rest: int) -> InfeasibleBudget:
    """Returns the refusal of files so small that no weight would have room in them."""
    return InfeasibleBudget(
        f"{size} bytes for all files are too few: what is no weight takes some {rest}",
        hint="give more, or a budget in bits per weight",
    )


def table_for(options: CompileOptions) -> Capabilities:
    """Returns what the target can run, and where results are proven."""
    return as_asked(load(options.target), options.activations, options.prove_on)


def _check_runtime(options: CompileOptions) -> None:
    """Refuses a target whose results could not be proven on this machine.

    Raises:
        MachineError: It cannot run the target.
    """
    target = options.target
    if table_for(options).provider != load(target).provider:
        target = "ort-cpu"
    problem = installed_runtime_problem(target)
    if problem is not None:
        raise MachineError(
            problem, hint="the result is proven by running it; run: mpqc doctor"
        )
    if _on_device(options):
        check_device()


def _on_device(options: CompileOptions) -> bool:
    return table_for(options).provider == "CUDAExecutionProvider"


def _check_that_it_runs(path: Path, options: CompileOptions, calibration: Calibration) -> None:
    """Runs the first sample, so that a model that cannot run is refused before the work.

    Raises:
        InputError: The runtime cannot load the model, or it fails on the sample.
        MachineError: Some of its nodes run on the CPU instead of the target's device.
    """
    with open_session(path, table_for(options).provider, mapped=True) as session:
        if not options.allow_fallback:
            session.refuse_fallback()
        session.run(calibration.feeds[0])


def read_foreign(path: Path) -> ir.Model:
    """Reads a model whose notes, if somebody wrote any, are claims that nobody has checked."""
    model = read_model(path)
    forget_notes(model)
    return model


def exported(
    source: Source, scratch: Path, progress: Progress, *, standard: bool = False
) -> Source:
    """Returns ``source`` with an ONNX file: a Hugging Face folder is exported first.

    Args:
        source: What was given.
        scratch: Where the export goes.
        progress: Where to show progress.
        standard: Whether the target knows operators of the ONNX standard alone.
    """
    if source.onnx is not None:
        return source
    progress.say(f"exporting {source.named} to ONNX")
    folder = scratch / "exported"
    folder.mkdir()
    export_into(source.folders[0], folder, progress, standard=standard)
    return Source(source.named, folder / "model.onnx", (folder, *source.folders))


def calibration_facts(calibration: Calibration) -> dict[str, Any]:
    """Returns what ``mpqc.json`` says about the samples."""
    return {
        "source": calibration.source,
        "key": calibration.key,
        "samples": len(calibration.training),
        "held_out": len(calibration.feeds) - len(calibration.training),
        "random_calibration": calibration.random,
    }


def _sizes(model: ir.Model, source: Source) -> tuple[int, int]:
    """Returns the number of weights in units, and a guess of all bytes that store none."""
    units = find_units(model)
    stored = sum(
        u.weight.const_value.nbytes for u in units if u.weight.const_value is not None
    )
    assert source.onnx is not None
    companions = sum(path.stat().st_size for path in source.companions().values())
    rest = model_bytes(source.onnx) - stored + companions + _REPORT_BYTES
    return sum(unit.size for unit in units), rest + (_NODE_BYTES + _ROW_BYTES) * len(units)


def _empty(stage: Path) -> None:
    for path in stage.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

"""mpqc opt: run passes on a dump, or on any ONNX file, and go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..backend.onnxruntime.capabilities import load
from ..backend.runner import Runner
from ..frontend.model_source import Source
from ..ir import (
    ArrayStore,
    Capabilities,
    InputError,
    MissingFact,
    UsageError,
    listing,
    read_model,
    refuse_overlap,
    staged_folder,
    temporary_folder,
    write_model,
)
from ..ir.costs import CostTable
from ..passes.engine.execution.devices import find_device
from ..passes.engine.execution.precision import exact_products
from ..passes.engine.pipeline.base import PassContext, Workers
from ..passes.engine.pipeline.dump import RUN, Dump, read_dump
from ..passes.engine.pipeline.instruments import TimePasses
from ..passes.engine.pipeline.pipeline import Pipeline
from ..passes.engine.pipeline.progress import Progress, SilentProgress
from ..passes.engine.pipeline.registry import pass_names
from .costs import costs_for
from .dump_folder import calibration_in, original_in, prepare_dumps
from .finishing import check_loss, finish
from .kernels import as_asked
from .option_fields import specs
from .options import CompileOptions
from .stats_cache import stats_folder
from .watch import Watch
from .workers import workers_for

_OPTIONS = specs(CompileOptions)


@dataclass(frozen=True)
class OptResult:
    """What a run of passes made.

    Attributes:
        model: The graph.
        pipeline: The passes that were run, as text.
        output: The folder that was written, if one was asked for.
        report: What the passes had to say, by their names.
    """

    model: ir.Model
    pipeline: str
    output: Path | None
    report: Mapping[str, Any]

    def listing(self) -> str:
        """Returns the graph as text."""
        return listing(self.model)


def opt(
    path: Path | str,
    passes: str | None = None,
    *,
    output: Path | str | None = None,
    overwrite: bool = False,
    device: str | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
    workers: int | str | None = None,
) -> OptResult:
    """Runs passes on a dump or on any ONNX file.

    Args:
        path: The ``.onnx`` file.
        passes: Passes as text; for a dump, by default, those that its run had still to do.
        output: Folder to write; a dump that is run to its end gives the whole result, byte for
            byte what the uninterrupted run gives.
        overwrite: Whether an existing output may be replaced.
        device: What to compute on; by default, what the dump's run was told.
        watch: What to look at meanwhile.
        progress: Where to show progress.
        workers: Processes that take part, as ``mpqc compile --workers`` takes them.

    Raises:
        InputError: The file is broken.
        MachineError: The device is not there.
        UsageError: There is nothing to run, or passes that cannot run on this graph.
    """
    path = Path(path)
    folder = path.absolute().parent
    dump = read_dump(path) if (folder / RUN).is_file() else _plain(path)
    if passes is None and not dump.pipeline:
        raise UsageError(
            f"{path} is no dump, so there are no passes left to run",
            hint=f"give some: -p {pass_names()[0]}",
        )
    pipeline = Pipeline.parse(dump.pipeline if passes is None else passes)
    first = dump.position if passes is None else 0
    if output is not None:
        refuse_overlap(Path(output), [path, folder])
    asked = device or dump.settings.get("device")
    computed_on = find_device(asked if isinstance(asked, str) else _OPTIONS["device"].default)
    shown = progress or SilentProgress()
    with workers_for(workers, computed_on) as crew, temporary_folder() as scratch:
        job = _Job(
            dump, pipeline, first, folder, computed_on, watch or Watch(), shown, workers=crew
        )
        if output is None:
            said = job.run(scratch)
        else:
            with staged_folder(Path(output), overwrite=overwrite) as stage:
                said = job.run(scratch, stage)
    chosen = Path(output) if output is not None else None
    run = pipeline.passes[first:]
    report = {one.name: said[one.name] for one in run if one.name in said}
    return OptResult(dump.model, str(Pipeline(run)), chosen, report)


def _plain(path: Path) -> Dump:
    if path.is_dir():
        raise InputError(f"{path} is a folder", hint="name the .onnx file of a dump")
    return Dump(read_model(path), ArrayStore(), "", 0)


@dataclass(frozen=True)
class _Job:
    """Passes to run on a dump."""

    dump: Dump
    pipeline: Pipeline
    first: int
    folder: Path
    device: str
    watch: Watch
    progress: Progress
    workers: Workers | None

    def run(self, scratch: Path, stage: Path | None = None) -> Mapping[str, Any]:
        """Runs them; fills ``stage`` if there is one. Returns the report of the whole run."""
        context, timer = self._context(scratch), TimePasses()
        settings = {**self.dump.settings, "computed_on": self.device}
        self._prepare_dumps(context)
        instruments = self.watch.instruments(timer, context, self.pipeline, settings)
        try:
            with exact_products():
                ran = self.pipeline.run(self.dump.model, context, instruments, self.first)
        except MissingFact as error:
            raise InputError(
                f"the dump lacks what the passes need: {error.message}",
                hint="dump again, or take an earlier dump of the run",
            ) from error
        if self.watch.time_passes:
            self.progress.say(timer.table())
        if stage is not None:
            self._write(stage, context, settings, ran, timer)
        return context.report

    def _prepare_dumps(self, context: PassContext) -> None:
        """Hands on what the dumps of this run need so that a run can go on from them too."""
        chosen, original = self.watch.dump_after_each, original_in(self.folder)
        if chosen is None or original is None:
            return
        target = Path(chosen)
        if target.absolute() == self.folder:
            return
        assert original.onnx is not None, "a folder of dumps has its original as ONNX"
        prepare_dumps(target, read_model(original.onnx), original, context.calibration)

    def _write(
        self,
        stage: Path,
        context: PassContext,
        settings: dict[str, Any],
        ran: int,
        timer: TimePasses,
    ) -> None:
        original = original_in(self.folder)
        if self.first and original is not None:
            model, pipeline = self.dump.model, self.pipeline
            check_loss(context, pipeline, accept=self.watch.accept_loss)
            finish(stage, model, original, context, pipeline, ran, settings, timer)
            return
        write_model(self.dump.model, stage / "model.onnx")
        if context.arrays.in_memory():
            context.arrays.save(stage / "model.safetensors")

    def _table(self) -> Capabilities:
        """Returns what the target can run, as the run that made the dump saw it."""
        settings = self.dump.settings
        target = str(settings.get("target", _OPTIONS["target"].default))
        product, lookup = (settings.get(f"smallest_{kind}") for kind in ("kernel", "lookup"))
        table = as_asked(load(target), settings.get("activations"), settings.get("prove_on"))
        return replace(
            table,
            smallest_kernel=product if isinstance(product, int) else 0,
            smallest_lookup=lookup if isinstance(lookup, int) else 0,
            half=settings.get("half") is True,
        )

    def _costs(self, table: Capabilities) -> CostTable | None:
        """Returns what operations take, by the table that the run that made the dump took."""
        machine = self.dump.settings.get("costs")
        return costs_for(machine, table) if isinstance(machine, str) else None

    def _context(self, scratch: Path) -> PassContext:
        table = self._table()
        original: Source | None = original_in(self.folder)
        seed = self.dump.settings.get("seed")
        return PassContext(
            runner=Runner.of(table),
            capabilities=table,
            scratch=scratch,
            arrays=self.dump.arrays,
            calibration=calibration_in(self.folder),
            cache=stats_folder(None, self.progress.say),
            seed=seed if isinstance(seed, int) else _OPTIONS["seed"].default,
            progress=self.progress,
            original=original.onnx if original is not None else None,
            report=dict(self.dump.report),
            costs=self._costs(table),
            device=self.device,
            workers=self.workers,
        )

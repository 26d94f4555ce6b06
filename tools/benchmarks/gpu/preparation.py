"""gpu prepare: every form of a model, samples, and what the CPU makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....backend.onnxruntime.runner import open_session
from ....backend.torch_fx.session import open_torch
from ....frontend.model_inputs import model_inputs
from ....frontend.model_source import Source, locate
from ....frontend.workload_feeds import workload_feed
from ....ir import Feeds, read_model, staged_folder, temporary_folder, write_model
from ....ir.analysis.storage import stored
from ....ir.workloads import PROMPT, Workload, workloads
from ....passes.engine.pipeline.pipeline import Pipeline
from ....passes.engine.pipeline.progress import Progress
from ... import pipelines, smollm2
from ...api import compile as compile_model
from ...budget import Budget
from ...comparison.methods import settings_for
from ...compilation import Compilation, prepare
from ...evaluate import compared_outputs, predicts
from ...export import export_folder
from ...inspection import model_bytes
from ...manifest import versions
from ...options import CalibrationOptions
from ...runtimes import LoadedModel
from ...watch import Watch
from .kit import (
    BY_RUNTIME,
    BY_STANDARD,
    CUDA,
    HALF,
    ORIGINAL,
    TENSORRT,
    UNIFORM,
    Form,
    Kit,
    feed_in,
    model_in,
    reference_in,
    rows_of,
    texts_in,
    write_plan,
)

ANY, STANDARD = "any", "standard"  # the operators of an export
_SINGLE, _PROMPT = Workload("single", 1), Workload(PROMPT, 512)
_UNUSED = 4.0  # bits: samples are made for every budget alike
Opener = Callable[[Path], AbstractContextManager[LoadedModel]]


@dataclass(frozen=True)
class Order:
    """What shall be prepared.

    Attributes:
        model: An exported folder, an ONNX file, or a Hugging Face folder; None for SmolLM2.
        budget: Stored bits per weight of what is quantized.
        preset: How mpqc's own results are made.
        forms: Which forms.
        calibration: What all are calibrated on.
    """

    model: Path | None
    budget: float
    preset: str
    forms: Sequence[str]
    calibration: Mapping[str, Any]


def prepare_kit(order: Order, output: Path, progress: Progress) -> Kit:
    """Makes the folder ``output``, complete or not at all.

    Raises:
        InputError: The model or the samples are broken.
        MachineError: Something is missing, or the disk is full.
        UsageError: The output exists.
    """
    with staged_folder(output, overwrite=False) as stage, temporary_folder() as scratch:
        named = order.model or smollm2.prepare(scratch / "smollm2")
        wanted = {_operators(one): None for one in order.forms}
        sources = {one: _source(named, one, scratch) for one in wanted}
        forms: dict[str, Form] = {}
        runs: tuple[str, ...] = ()
        for operators, source in sources.items():
            with _work(source, order, scratch / operators, progress) as work:
                feeds = _write_feeds(work, operators, stage)
                runs = tuple(feeds)
                for name in order.forms:
                    if _operators(name) == operators:
                        progress.say(f"preparing {name}")
                        _make(name, work, order, stage, scratch)
                        forms[name] = _form(name, operators, work, feeds, stage)
        if ORIGINAL in order.forms:
            _copy_companions(sources[ANY], stage)
        facts = {
            "model": named.name,
            "calibration": _copy_texts(order, stage),
            "budget": order.budget,
            "preset": order.preset,
            "versions": versions(),
        }
        kit = Kit(stage, {name: forms[name] for name in order.forms}, runs, facts)
        write_plan(stage, kit)
    return Kit(output, kit.forms, kit.runs, kit.facts)


def _copy_companions(source: Source, stage: Path) -> None:
    """Puts the tokenizer beside the original, so that it can be compiled on the device."""
    folder = model_in(stage, ORIGINAL).parent
    for name, path in source.companions().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)


def _copy_texts(order: Order, stage: Path) -> dict[str, Any]:
    """Copies what is calibrated on; returns the other options of it."""
    texts, rest = texts_in(stage), dict(order.calibration)
    for at, path in enumerate(rest.pop("calibration", None) or ()):
        texts.mkdir(exist_ok=True)
        target = texts / f"{at:03d}-{Path(path).name}"
        (shutil.copytree if Path(path).is_dir() else shutil.copy)(path, target)
    return {name: value for name, value in rest.items() if value is not None}


def _operators(form: str) -> str:
    return STANDARD if form == TENSORRT else ANY


def _source(named: Path, operators: str, scratch: Path) -> Source:
    """Returns the ONNX model of a name, exported in these operators if it must be."""
    source = locate(named)
    if source.onnx is not None:
        return source
    return locate(
        export_folder(named, scratch / f"export-{operators}", operators=operators).output
    )


@contextmanager
def _work(source: Source, order: Order, scratch: Path, progress: Progress) -> Any:
    """Prepares what compilations work on: samples of the model, and a place for statistics."""
    scratch.mkdir()
    given = CalibrationOptions(**order.calibration)
    settings = settings_for(Budget(_UNUSED), given)
    yield prepare(source, settings, scratch, scratch / "stats", progress, Watch())


def _write_feeds(work: Compilation, operators: str, stage: Path) -> dict[str, Feeds]:
    """Writes a sample for each run."""
    calibration = work.calibration
    assert calibration is not None
    inputs = model_inputs(read_model(work.original))
    runs = workloads(calibration)
    if len(runs) == 1 and calibration.tokens is not None:
        runs = (_SINGLE, _PROMPT)
    feeds = {run.name: workload_feed(inputs, calibration.feeds[0], run) for run in runs}
    for run, feed in feeds.items():
        np.savez(feed_in(stage, operators, run), allow_pickle=False, **feed)
    return feeds


def _make(name: str, work: Compilation, order: Order, stage: Path, scratch: Path) -> None:
    """Writes the model of a form."""
    path = model_in(stage, name)
    path.parent.mkdir()
    if name in (ORIGINAL, HALF):
        model = read_model(work.original)
        if name == HALF:
            Pipeline(pipelines.passes_of(pipelines.HALF)).run(model, work.context())
        write_model(model, path)
        return
    target = TENSORRT if name == TENSORRT else CUDA
    preset = UNIFORM if name == UNIFORM else order.preset
    made = compile_model(
        work.original,
        **order.calibration,
        budget=order.budget,
        preset=preset,
        target=target,
        prove_on="cpu",
        output=scratch / name,
        cache=scratch / "cache",
        progress=work.progress,
    )
    for file in made.output.glob(f"{made.model.name}*"):
        shutil.move(file, path.parent / file.name)
    shutil.rmtree(made.output)


def _form(
    name: str, operators: str, work: Compilation, feeds: Mapping[str, Feeds], stage: Path
) -> Form:
    """Writes what the CPU makes of a form; returns what is to be known of it."""
    path = model_in(stage, name)
    with open_session(path, exact=True) as session:
        output = compared_outputs(session)[0]
        logits = _predicts(session, output, work, next(iter(feeds.values())))
    ways: dict[str, Opener] = {BY_RUNTIME: lambda model: open_session(model, exact=True)}
    if name == TENSORRT:
        ways[BY_STANDARD] = open_torch
    for by, opened in ways.items():
        with opened(path) as session:
            found = {
                run: rows_of(session.run(feed, [output])[output])
                for run, feed in feeds.items()
            }
        np.savez(reference_in(stage, name, by), allow_pickle=False, **found)
    bits = stored(read_model(path)).whole_file_bits
    return Form(name, operators, output, logits, model_bytes(path), bits)


def _predicts(session: LoadedModel, output: str, work: Compilation, feed: Feeds) -> bool:
    """Returns whether an output holds a score for each word."""
    inputs = model_inputs(read_model(work.original))
    tokens = next((one for one in inputs if one.role == "tokens"), None)
    if tokens is None:
        return False
    found = session.run(feed, [output])[output]
    return predicts(found, feed[tokens.name], tokens.vocabulary)

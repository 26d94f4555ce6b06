"""The Python API: ``mpqc.compile``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..frontend.model_source import Source, locate
from ..ir import UsageError, refuse_overlap, staged_folder, write_model
from ..passes.engine.pipeline.base import Progress, SilentProgress
from .compilation import Outcome, prepare
from .settings import CompileSettings, make_settings
from .stats_cache import stats_folder
from .watch import Watch


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
        measured: What verify-numerics measured.
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


def compile(
    model: Any,
    *,
    budget: float | str | None = None,
    file_budget: float | str | None = None,
    output: Path | str | None = None,
    target: str | None = None,
    calibration: Sequence[Path | str] | Path | str = (),
    samples: int | None = None,
    sequence_length: int | None = None,
    recipe: Path | str | None = None,
    preset: str | None = None,
    passes: str | None = None,
    overwrite: bool = False,
    random_calibration: bool = False,
    objective: str | None = None,
    activations: str | None = None,
    seed: int | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    dump_after_each: Path | str | None = None,
    stop_after: str | None = None,
    print_after: str | None = None,
    time_passes: bool = False,
    cache: Path | str | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Compiles a model to exactly a budget, for a runtime that exists.

    Args:
        model: An .onnx file, a folder with one, a Hugging Face folder, or a torch module or
            fx GraphModule (with ``example_inputs``).
        budget: Stored bits per weight (``3.5``) or the size of all files (``"60MB"``), with
            weights that take no more room in memory than in the file, apart from scales.
        file_budget: The same for the file alone, instead of ``budget``: weights may be stored
            at any width from 2 to 8 bits and grow to 2, 4 or 8 when the model is loaded.
        output: The folder to make; by default ``<model>-<budget>`` in the current folder.
        target: ``ort-cpu`` (default), ``ort-cuda`` or ``qdq`` (standard ONNX).
        calibration: Text files, ``.npz``/``.safetensors`` files, or folders of them.
        samples: Calibration samples (64).
        sequence_length: Tokens in a sample (512).
        recipe: A TOML file with a pipeline and defaults for these options.
        preset: Name of a pipeline (``default``); ``mpqc presets`` lists them.
        passes: A pipeline as text, instead of a preset.
        overwrite: Whether an existing output may be replaced.
        random_calibration: Calibrate on noise; the result is marked.
        objective: ``auto`` (default), ``logits`` or ``regression``.
        activations: For target ``qdq``: ``none`` (default), ``int8`` or ``uint8``.
        seed: Seed of every random choice (0).
        example_inputs: For a torch module: one set of positional inputs.
        dynamic_shapes: For a torch module: as ``torch.export.export`` takes it.
        dump_after_each: Folder for a dump after every pass.
        stop_after: Name of the pass to stop after.
        print_after: Name of the pass, or ``all``, after which to print the graph to stderr.
        time_passes: Whether to show what each pass cost.
        cache: Folder for stats that outlive the run; the user's cache folder by default.
        progress: Where to show progress.

    Raises:
        UsageError: An option is impossible, or the output exists.
        InputError: The model or the samples are broken or unsafe.
        MachineError: The machine lacks something.
        InfeasibleBudget: No choice of options fits the budget.
    """
    files = [calibration] if isinstance(calibration, (str, Path)) else list(calibration)
    settings = make_settings(
        budget,
        file_budget,
        recipe=Path(recipe) if recipe is not None else None,
        preset=preset,
        passes=passes,
        calibration=files,
        random_calibration=random_calibration,
        target=target,
        samples=samples,
        sequence_length=sequence_length,
        objective=objective,
        activations=activations,
        seed=seed,
    )
    watch = Watch(
        Path(dump_after_each) if dump_after_each is not None else None,
        stop_after,
        print_after,
        time_passes,
    )
    _check_module_options(model, example_inputs, dynamic_shapes)
    source = None if _is_module(model) else locate(Path(model))
    chosen = Path(output) if output is not None else default_output(model, budget, file_budget)
    _refuse_bad_places(chosen, source, settings, watch, recipe)
    shown = progress or SilentProgress()
    for line in (*settings.lines(), f"output: {chosen}"):
        shown.say(line)
    with staged_folder(chosen, overwrite=overwrite) as stage:
        scratch = stage.parent / "scratch"
        scratch.mkdir()
        if source is None:
            source = _from_module(model, example_inputs or (), dynamic_shapes, scratch)
        kept = Path(cache) if cache is not None else stats_folder()
        job = prepare(source, settings, scratch, kept, shown, watch)
        outcome = job.run(stage)
    return _result(chosen, outcome)


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
    if _is_module(model):
        return Path(f"{type(model).__name__}-{label}")
    path = Path(model).absolute()
    stem = path.parent.name if path.name == "model.onnx" else path.stem
    return Path(f"{path.name if path.is_dir() else stem}-{label}")


def _is_module(model: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _check_module_options(model: Any, example_inputs: Any, dynamic_shapes: Any) -> None:
    if _is_module(model):
        if example_inputs is None:
            raise UsageError(
                "a torch module needs example inputs",
                hint="mpqc.compile(module, example_inputs=(tensor,), budget=3.5)",
            )
        return
    if not isinstance(model, (str, Path)):
        raise UsageError(f"{type(model).__name__} is no model: give a path or a torch module")
    if example_inputs is not None or dynamic_shapes is not None:
        raise UsageError("example_inputs and dynamic_shapes only go with a torch module")


def _refuse_bad_places(
    output: Path,
    source: Source | None,
    settings: CompileSettings,
    watch: Watch,
    recipe: Path | str | None,
) -> None:
    """Refuses places to write that would destroy something that is read."""
    inputs = [*settings.calibration, *([Path(recipe)] if recipe is not None else [])]
    if source is not None:
        inputs += [source.named, *source.folders, *([source.onnx] if source.onnx else [])]
    refuse_overlap(output, inputs)
    if watch.dump_after_each is not None:
        refuse_overlap(watch.dump_after_each, inputs)
        if watch.dump_after_each.resolve() == output.resolve():
            raise UsageError("dumps and output cannot share a folder")


def _from_module(module: Any, examples: Sequence[Any], shapes: Any, scratch: Path) -> Source:
    from ..frontend.torch_module import from_module

    folder = scratch / "module"
    folder.mkdir()
    write_model(from_module(module, examples, shapes), folder / "model.onnx")
    return Source(Path(type(module).__name__), folder / "model.onnx", (folder,))


def _result(output: Path, outcome: Outcome) -> CompileResult:
    facts = outcome.facts
    asked = facts["asked"].get("bits")
    got = facts["got"]
    return CompileResult(
        output=output,
        model=output / "model.onnx",
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

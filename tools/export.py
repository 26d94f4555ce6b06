"""mpqc export: a Hugging Face folder -> a folder with an ONNX model, proven to load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..frontend.model_source import locate
from ..ir import UsageError, refuse_overlap, staged_folder
from ..ir.text_form import did_you_mean
from ..passes.engine.pipeline.progress import Progress, SilentProgress
from .options import OPERATORS


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        output: The new folder.
        model: The ONNX file in it.
        route: The exporter that was used: ``genai-builder`` or ``torch-export``.
        files: Bytes of each file.
    """

    output: Path
    model: Path
    route: str
    files: dict[str, int]


def export_folder(
    folder: Path | str,
    output: Path | str | None = None,
    *,
    overwrite: bool = False,
    operators: str = OPERATORS[0],
    progress: Progress | None = None,
) -> ExportResult:
    """Exports the model of a Hugging Face folder to ONNX.

    Models that generate get a key/value cache and, where onnxruntime-genai runs them,
    ``genai_config.json``; everything else is one graph from inputs to outputs. An
    encoder-decoder is one graph, with its two parts beside it as files that share its weights.
    The folder appears complete or not at all.

    Args:
        folder: Holds config.json, safetensors weights and, for text, tokenizer files.
        output: Where to write; ``<folder>-onnx`` in the current folder by default.
        overwrite: Whether an existing output may be replaced.
        operators: ``any``, or ``standard`` for those of the ONNX standard alone.
        progress: Where to say what is not exported.

    Raises:
        InputError: The folder is unsafe, incomplete, or of a kind that nothing can export.
        MachineError: A package is missing, or the disk is full.
        UsageError: The output exists, or would replace the input; or ``operators`` is unknown.
    """
    if operators not in OPERATORS:
        hint = did_you_mean(operators, OPERATORS)
        raise UsageError(f"operators can not be {operators!r}", hint=hint)
    source = locate(Path(folder))
    if source.onnx is not None:
        raise UsageError(
            f"{folder} already holds an ONNX model: {source.onnx.name}",
            hint="compile it directly",
        )
    home = source.folders[0]
    output = Path(output) if output is not None else Path(f"{home.name}-onnx")
    refuse_overlap(output, [home])
    with staged_folder(output, overwrite=overwrite) as stage:
        standard = operators != OPERATORS[0]
        route = export_into(home, stage, progress or SilentProgress(), standard=standard)
        files = {one.name: one.stat().st_size for one in sorted(stage.iterdir())}
    return ExportResult(output, output / "model.onnx", route, files)


def export_into(
    folder: Path, stage: Path, progress: Progress, *, standard: bool = False
) -> str:
    """Exports into an empty folder and proves that ONNX Runtime loads the result.

    Args:
        folder: The Hugging Face folder.
        stage: The empty folder.
        progress: Where to say what is not exported.
        standard: Whether only operators of the ONNX standard will do.

    Returns:
        The exporter that was used.
    """
    from ..backend.onnxruntime.runner import open_session
    from ..frontend import hugging_face
    from .parts import cut_in_parts

    route = hugging_face.export_folder(folder, stage, progress.say, standard=standard)
    model = stage / "model.onnx"
    for path in (model, *cut_in_parts(model, progress.say)):
        with open_session(path):
            pass
    return route

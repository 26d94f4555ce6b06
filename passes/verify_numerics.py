"""verify-numerics: run the original and the result in the target runtime and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import Budgeted, Calibrated, Feeds, InternalError, UsageError, note_of
from .engine.execution.padding import Padding
from .engine.numerics.divergence import cosine, kl_divergence, relative_error, top1_agreement
from .engine.pipeline.base import Pass, PassContext

_SUSPICIOUS = 4.0  # measured over predicted divergence from which the report warns
_NEGLIGIBLE = 0.02  # nats below which a ratio says nothing
_FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
}


@dataclass(frozen=True)
class VerifyNumerics(Pass):
    """Measure the loss of the whole pipeline on samples that nothing was fitted to.

    For a model with logits, the report has the divergence in nats per token and the share of
    tokens with the same first choice; otherwise the relative error and the cosine similarity
    of every float output. The two models are loaded one after the other.

    Attributes:
        samples: Largest number of held-out samples to run.
    """

    name: ClassVar[str] = "verify-numerics"
    measures: ClassVar[bool] = True

    samples: int = 2

    def run(self, model: ir.Model, context: PassContext) -> bool:
        if context.calibration is None or context.original is None:
            raise UsageError(
                f"{self.name} needs samples and the original model",
                hint="give calibration data, or leave the pass out",
            )
        feeds = context.calibration.validation[: max(self.samples, 1)]
        note = note_of(model, Calibrated)
        logits = note is not None and note.objective == "logits"
        names = [note.output] if note and logits else _float_outputs(model)
        reference = context.scratch / "reference"
        reference.mkdir(parents=True, exist_ok=True)
        _keep_reference(context.original, context, feeds, names, reference)
        measured = _compare(model, context, feeds, names, reference, logits)
        facts = _logits_facts(model, measured) if logits else _output_facts(measured)
        objective = "logits" if logits else "regression"
        context.report[self.name] = {"objective": objective, "samples": len(feeds), **facts}
        return False


def _float_outputs(model: ir.Model) -> list[str]:
    return [str(one.name) for one in model.graph.outputs if one.dtype in _FLOATS]


def _keep_reference(
    original: Path,
    context: PassContext,
    feeds: Sequence[Feeds],
    names: list[str],
    kept: Path,
) -> None:
    """Writes the original's outputs to files, so that it is closed before the result opens."""
    with context.runner.session(original) as session:
        for at, sample in _tracked(context, feeds, "original"):
            for index, array in enumerate(_outputs(session.run(sample, names), names)):
                np.save(kept / f"{at}-{index}.npy", array, allow_pickle=False)


def _compare(
    model: ir.Model,
    context: PassContext,
    feeds: Sequence[Feeds],
    names: list[str],
    kept: Path,
    logits: bool,
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Returns the metrics of every output, one entry for each sample."""
    assert context.calibration is not None
    metrics: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in names}
    with context.runner.session(model) as session:
        for at, sample in _tracked(context, feeds, "result"):
            padding = Padding.of(sample, context.calibration.mask)
            for index, result in enumerate(_outputs(session.run(sample, names), names)):
                path = kept / f"{at}-{index}.npy"
                wanted = np.load(path, mmap_mode="r", allow_pickle=False)
                pair = _tokens(wanted, result, names[index], padding)
                metrics[names[index]].append(_metrics(*pair, logits))
                del wanted
                path.unlink()
    return metrics


def _tracked(context: PassContext, feeds: Sequence[Feeds], what: str) -> Any:
    return context.progress.track(enumerate(feeds), len(feeds), f"run the {what}")


def _outputs(results: Mapping[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    return [np.asarray(results[name]) for name in names]


def _tokens(
    wanted: np.ndarray, result: np.ndarray, name: str, padding: Padding
) -> tuple[np.ndarray, np.ndarray]:
    """Returns an output of both without padding.

    Refuses one of another shape, or one that is not finite where it was.
    """
    if wanted.shape != result.shape:
        shapes = f"{list(result.shape)}, the original's has {list(wanted.shape)}"
        raise InternalError(f"output {name!r} has shape {shapes}")
    wanted, result = padding.tokens(wanted), padding.tokens(result)
    broken = int(np.count_nonzero(np.isfinite(wanted) & ~np.isfinite(result)))
    if broken:
        raise InternalError(f"output {name!r} has {broken} entries that are no longer finite")
    return wanted, result


def _metrics(wanted: np.ndarray, result: np.ndarray, logits: bool) -> dict[str, np.ndarray]:
    if logits:
        return {"kl": kl_divergence(wanted, result), "top1": top1_agreement(wanted, result)}
    finite = np.isfinite(wanted)
    before, now = np.where(finite, wanted, 0), np.where(finite, result, 0)
    error = np.array([relative_error(before, now)])
    return {"relative_error": error, "cosine": cosine(before, now)}


def _means(samples: list[dict[str, np.ndarray]]) -> dict[str, float]:
    keys = samples[0] if samples else {}
    return {key: float(np.concatenate([one[key] for one in samples]).mean()) for key in keys}


def _logits_facts(
    model: ir.Model, measured: Mapping[str, list[dict[str, np.ndarray]]]
) -> dict[str, Any]:
    ((name, samples),) = measured.items()
    facts: dict[str, Any] = {"output": name, **_means(samples)}
    facts["tokens"] = sum(len(one["kl"]) for one in samples)
    budget = note_of(model, Budgeted)
    if budget is not None:
        facts["predicted"] = budget.loss
        if facts["kl"] > max(_SUSPICIOUS * budget.loss, _NEGLIGIBLE):
            facts["warning"] = (
                f"measured {facts['kl']:.3g} nats per token, predicted {budget.loss:.3g}: "
                "calibrate on more text, or on text closer to what the model will read"
            )
    return facts


def _output_facts(measured: Mapping[str, list[dict[str, np.ndarray]]]) -> dict[str, Any]:
    outputs = {name: _means(samples) for name, samples in measured.items()}
    errors = [facts["relative_error"] for facts in outputs.values()]
    cosines = [facts["cosine"] for facts in outputs.values()]
    return {
        "outputs": outputs,
        "relative_error": max(errors, default=0.0),
        "cosine": min(cosines, default=1.0),
    }

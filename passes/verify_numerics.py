"""verify-numerics: run the original and the result in the target runtime and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import Budgeted, Calibrated, Feeds, InternalError, UsageError, note_of, quantizable
from ..ir.machine_errors import machine_errors
from .engine.execution.extent import FLOAT_BYTES, Extent
from .engine.execution.padding import Padding
from .engine.numerics.divergence import (
    cosine,
    kl_divergence,
    relative_error,
    squared_divergence,
    top1_agreement,
)
from .engine.numerics.estimate import Estimate
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast
from .engine.pipeline.work import Kind, Work
from .engine.validation.excess import REFUSED, blamed, level_of

_Metrics = dict[str, list[dict[str, np.ndarray]]]  # by output, one entry for each sample
_RESULT = 1.3  # times the original's: what the result takes, whose kernels are of codes
_WALKS = 10  # over outputs, while they are compared
_SMALL = 0.01  # divergence below which only the absolute error matters
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

    Held-out samples come first, then calibration samples, a few at a time, until the standard
    error of the divergence is at most ``error`` of it. The report says how many of each there
    were. A loss far above its prediction is a warning; one beyond everything that rounding
    explains is refused in the end, unless the user accepts it.

    Attributes:
        samples: How many samples to run at a time, and at least.
        most: How many samples to run at most.
        error: Standard error, as a share of the divergence, at which it is known well enough.
    """

    name: ClassVar[str] = "verify-numerics"
    measures: ClassVar[bool] = True
    promise: ClassVar[Promise] = Promise.SAME_GRAPH

    samples: int = 4
    most: int = 32
    error: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.samples <= self.most or not self.error > 0:
            raise UsageError(
                f"{self.name} cannot run {self.samples} to {self.most} samples",
                hint="samples of 1 or more, most at least as many, and an error above 0",
            )

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Original and result on some samples, twice as many as at least."""
        if context.calibration is None:
            return Work()
        extent, units = Extent.of(model, context.calibration), quantizable(model)
        count = min(2 * self.samples, self.most, len(context.calibration.feeds))
        weights = float(sum(unit.size for unit in units))
        outputs = sum(extent.entries(value) for value in model.graph.outputs)
        amounts = {
            Kind.RUN: (1 + _RESULT) * count * extent.multiply_adds(units),
            Kind.WALK: count * _WALKS * outputs,
            Kind.LOAD: 2 * FLOAT_BYTES * weights * (count / self.samples),
            Kind.WRITE: float(FLOAT_BYTES * outputs * count),
        }
        held = FLOAT_BYTES * (weights + _WALKS * outputs)
        return Work(amounts, held=held, scratch=FLOAT_BYTES * outputs * self.samples)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        if context.calibration is None or context.original is None:
            raise UsageError(
                f"{self.name} needs samples and the original model",
                hint="give calibration data, or leave the pass out",
            )
        note = note_of(model, Calibrated)
        logits = note is not None and note.objective == "logits"
        names = [note.output] if note and logits else _float_outputs(model)
        samples = context.calibration
        feeds = [*samples.kept_back, *samples.training][: self.most]
        measured: _Metrics = {name: [] for name in names}
        ran = 0
        while ran < len(feeds) and not (ran and self._is_sure(measured)):
            part = feeds[ran : ran + self.samples]
            _measure(model, context, part, measured, logits=logits)
            ran += len(part)
        facts = _logits_facts(measured) if logits else _output_facts(measured)
        context.report[self.name] = {
            "objective": "logits" if logits else "regression",
            "samples": ran,
            "held_out": min(ran, len(samples.kept_back)),
            **facts,
            **_judged(model, _divergence(measured)),
        }
        return False

    def _is_sure(self, measured: _Metrics) -> bool:
        return _divergence(measured).is_sure(self.error, _SMALL)


def _float_outputs(model: ir.Model) -> list[str]:
    return [str(one.name) for one in model.graph.outputs if one.dtype in _FLOATS]


def _measure(
    model: ir.Model,
    context: PassContext,
    feeds: Sequence[Feeds],
    measured: _Metrics,
    *,
    logits: bool,
) -> None:
    """Adds the metrics of some samples."""
    assert context.original is not None
    reference, names = context.scratch / "reference", list(measured)
    reference.mkdir(parents=True, exist_ok=True)
    _keep_reference(context.original, context, feeds, names, reference)
    for name, found in _compare(model, context, feeds, names, reference, logits).items():
        measured[name] += found


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
                with machine_errors(kept, "set TMPDIR to another folder"):
                    np.save(kept / f"{at}-{index}.npy", array, allow_pickle=False)


def _compare(
    model: ir.Model,
    context: PassContext,
    feeds: Sequence[Feeds],
    names: list[str],
    kept: Path,
    logits: bool,
) -> _Metrics:
    """Returns the metrics of every output, one entry for each sample."""
    assert context.calibration is not None
    metrics: _Metrics = {name: [] for name in names}
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
    """Returns figures of one output of one sample; ``divergence`` has one for each token."""
    if logits:
        kl = kl_divergence(wanted, result)
        return {"divergence": kl, "top1": top1_agreement(wanted, result)}
    finite = np.isfinite(wanted)
    before, now = np.where(finite, wanted, 0), np.where(finite, result, 0)
    error = np.array([relative_error(before, now)])
    divergence = squared_divergence(before, now)
    return {
        "divergence": divergence,
        "relative_error": error,
        "cosine": cosine(before, now),
    }


def _means(samples: list[dict[str, np.ndarray]]) -> dict[str, float]:
    keys = samples[0].keys() - {"divergence"} if samples else ()
    return {key: float(np.concatenate([one[key] for one in samples]).mean()) for key in keys}


def _divergence(measured: _Metrics) -> Estimate:
    """Returns the divergence over all outputs, in the unit of its prediction."""
    by_sample = zip(*measured.values(), strict=True)
    return Estimate.of(
        [np.concatenate([one["divergence"] for one in outputs]) for outputs in by_sample]
    )


def _logits_facts(measured: _Metrics) -> dict[str, Any]:
    ((name, samples),) = measured.items()
    kl = _divergence(measured)
    return {"output": name, "kl": kl.mean, "tokens": kl.tokens, **_means(samples)}


def _output_facts(measured: _Metrics) -> dict[str, Any]:
    outputs = {name: _means(samples) for name, samples in measured.items()}
    errors = [facts["relative_error"] for facts in outputs.values()]
    cosines = [facts["cosine"] for facts in outputs.values()]
    return {
        "outputs": outputs,
        "relative_error": max(errors, default=0.0),
        "cosine": min(cosines, default=1.0),
        "divergence": _divergence(measured).mean,
    }


def _judged(model: ir.Model, measured: Estimate) -> dict[str, Any]:
    """Compares with the prediction, if there is one."""
    error = {"standard_error": measured.error if np.isfinite(measured.error) else None}
    budget = note_of(model, Budgeted)
    if budget is None:
        return error
    level = level_of(measured, budget.loss)
    facts: dict[str, Any] = {**error, "predicted": budget.loss}
    if level:
        facts["warning"] = (
            f"lost {measured.mean:.3g} (standard error {measured.error:.2g}), predicted were"
            f" {budget.loss:.3g}: calibrate on more text, or on text closer to what the model"
            " will read"
        )
        facts["blamed"] = blamed(model)
    if level == REFUSED:
        facts["excessive"] = True
    return facts

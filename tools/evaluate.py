"""mpqc eval: how far a result is from its original, both run in the same runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..frontend.model_inputs import ModelInput
from ..frontend.model_source import Source, locate
from ..frontend.samples import SampleMaker
from ..ir import Feeds, InputError, UsageError, read_model
from ..passes.engine.execution.padding import Padding
from ..passes.engine.numerics.divergence import cosine, kl_of_logs, log_softmax, relative_error
from ..passes.engine.pipeline.progress import Progress, SilentProgress
from .inspection import bits_per_weight, model_bytes
from .runtimes import LoadedModel, Runtime

_ROWS = 64  # positions looked at together, which bounds memory


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Figures that the model has no use for are None.

    Attributes:
        samples: Number of samples run.
        tokens: Number of predicted tokens; 0 for models that predict none.
        kl: KL(original || result) in nats per token.
        top1: Share of tokens for which both prefer the same next token.
        original_perplexity: Perplexity of the original.
        result_perplexity: Perplexity of the result.
        relative_error: Error of the outputs in the Euclidean norm, relative to the original's.
        cosine: Mean cosine similarity of outputs; sequences are mean-pooled first.
        lowest_cosine: The lowest cosine similarity of a sample.
        bits: Stored bits per weight of the result, recomputed from its graph.
        whole_file_bits: The same with every float constant of its file counted.
        resident_bits: Its bits per weight in memory after loading (estimated).
        original_bytes: Bytes of the original's model files.
        result_bytes: Bytes of the result's model files.
    """

    samples: int
    tokens: int
    kl: float | None
    top1: float | None
    original_perplexity: float | None
    result_perplexity: float | None
    relative_error: float | None
    cosine: float | None
    lowest_cosine: float | None
    bits: float
    whole_file_bits: float
    resident_bits: float
    original_bytes: int
    result_bytes: int

    def facts(self) -> dict[str, Any]:
        """Returns the figures that apply, for printing."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class HeldOut:
    """Samples to measure on.

    Attributes:
        feeds: One mapping from input name to array for each sample.
        tokens: The input that carries token ids, if the model reads tokens.
        mask: Name of the input that tells tokens from padding, if there is one.
    """

    feeds: Sequence[Feeds]
    tokens: ModelInput | None
    mask: str | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        texts: Sequence[Path | str],
        *,
        samples: int,
        sequence_length: int,
        progress: Progress,
    ) -> HeldOut:
        """Makes the samples of a text, or reads those of array files.

        The samples of a text are ``ids[i * step : i * step + sequence_length]`` with
        ``step = len(ids) // (samples + 1)``.

        Raises:
            InputError: A file is broken, or does not fit the model.
            UsageError: No text was given.
        """
        if not texts:
            raise UsageError("nothing to measure on", hint="give --text FILE")
        if samples < 1 or sequence_length < 2:
            raise UsageError("samples must be at least 1 and the sequence length at least 2")
        assert source.onnx is not None
        maker = SampleMaker.of(read_model(source.onnx), source, progress.say)
        files = [Path(one) for one in texts]
        feeds = maker.evaluation(files, samples=samples, sequence_length=sequence_length)
        return cls(feeds, maker.tokens, maker.mask_of_tokens(feeds))


def evaluate(
    original: Path | str,
    result: Path | str,
    texts: Sequence[Path | str],
    *,
    samples: int = 8,
    sequence_length: int = 512,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs two models on the same samples and compares what they say.

    Args:
        original: The model before.
        result: The model after.
        texts: Text files, or ``.npz``/``.safetensors`` files of arrays named like the inputs.
        samples: How many samples to run at most.
        sequence_length: Tokens in a sample.
        runtime: What to run both in; ONNX Runtime on the CPU by default.
        progress: Where to show progress.

    Raises:
        InputError: A file is broken, or the models do not fit each other.
        UsageError: No text was given.
    """
    before, after = _model_of(Path(original)), _model_of(Path(result))
    shown = progress or SilentProgress()
    held_out = HeldOut.of(
        _with_companions(before, after),
        texts,
        samples=samples,
        sequence_length=sequence_length,
        progress=shown,
    )
    assert before.onnx is not None
    assert after.onnx is not None
    return evaluate_on(before.onnx, after.onnx, held_out, runtime or Runtime(), shown)


def evaluate_on(
    before: Path, after: Path, held_out: HeldOut, runtime: Runtime, progress: Progress
) -> Evaluation:
    """Runs the ONNX files ``before`` and ``after`` on samples and compares what they say.

    Raises:
        InputError: A file is broken, or the models do not fit each other.
    """
    feeds = held_out.feeds
    with runtime.session(before) as first, runtime.session(after) as second:
        _check_fit(first, second)
        tracked = progress.track(feeds, len(feeds), "evaluate")
        measured = _measure(first, second, tracked, held_out)
    return Evaluation(
        samples=len(feeds),
        **vars(bits_per_weight(before, after)),
        original_bytes=model_bytes(before),
        result_bytes=model_bytes(after),
        **measured,
    )


def _model_of(named: Path) -> Source:
    source = locate(named)
    if source.onnx is None:
        raise InputError(f"{named} holds no ONNX model", hint=f"run: mpqc export {named}")
    return source


def _with_companions(before: Source, after: Source) -> Source:
    """Lets a bare original borrow the tokenizer that stands beside the result."""
    return Source(before.named, before.onnx, (*before.folders, *after.folders))


def _check_fit(first: LoadedModel, second: LoadedModel) -> None:
    ours, theirs = ({one.name for one in session.inputs} for session in (first, second))
    if ours != theirs:
        odd = ", ".join(sorted(ours ^ theirs)[:4])
        raise InputError(
            f"the two models have different inputs: {odd}",
            hint="give a result of this original",
        )


def _measure(
    first: LoadedModel,
    second: LoadedModel,
    feeds: Iterable[Feeds],
    held_out: HeldOut,
) -> dict[str, Any]:
    shared = {one.name for one in second.outputs}
    names = [name for name in compared_outputs(first) if name in shared]
    if not names:
        raise InputError("the two models have no float output in common")
    tally, tokens = _Tally(), held_out.tokens
    for feed in feeds:
        padding = Padding.of(feed, held_out.mask)
        wanted = first.run(feed, names[:1])[names[0]]
        got = second.run(feed, names[:1])[names[0]]
        if wanted.shape != got.shape:
            raise InputError(
                f"the models' outputs differ in shape: {wanted.shape}, {got.shape}"
            )
        if tokens is not None and predicts(wanted, feed[tokens.name], tokens.vocabulary):
            tally.add_logits(wanted, got, feed[tokens.name], padding)
        else:
            tally.add_output(wanted, got, padding)
    return tally.facts()


_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)")


def compared_outputs(model: LoadedModel) -> list[str]:
    """Returns the outputs that can be compared: floats that are no caches."""
    names = [one.name for one in model.outputs if one.type in _FLOATS]
    return [name for name in names if not _is_cache(name)]


def _is_cache(name: str) -> bool:
    return "present" in name or "past" in name


def predicts(output: np.ndarray, ids: np.ndarray, vocabulary: int) -> bool:
    """Returns whether ``output`` holds, for every token, a score for each word."""
    return output.ndim == 3 and output.shape[:2] == ids.shape and output.shape[2] == vocabulary


class _Tally:
    """Adds up what is measured on each sample."""

    def __init__(self) -> None:
        self.kl: list[np.ndarray] = []
        self.top1: list[np.ndarray] = []
        self.losses: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        self.cosines: list[np.ndarray] = []
        self.errors: list[float] = []

    def add_logits(
        self, wanted: np.ndarray, got: np.ndarray, ids: np.ndarray, padding: Padding
    ) -> None:
        """Adds the tokens that another token follows."""
        samples = zip(wanted, got, ids, padding.real(ids.shape), strict=True)
        for before, after, labels, real in samples:
            places = np.flatnonzero(real[:-1] & real[1:])
            for at in range(0, len(places), _ROWS):
                rows = places[at : at + _ROWS]
                self._add_rows(before[rows], after[rows], labels[rows + 1])

    def _add_rows(self, wanted: np.ndarray, got: np.ndarray, labels: np.ndarray) -> None:
        """Adds a few positions; every figure comes from the same two log-softmaxes."""
        before, after = log_softmax(wanted), log_softmax(got)
        at = np.arange(len(labels)), labels
        self.losses[0].append(-before[at])
        self.losses[1].append(-after[at])
        self.top1.append(wanted.argmax(-1) == got.argmax(-1))
        self.kl.append(kl_of_logs(before, after))

    def add_output(self, wanted: np.ndarray, got: np.ndarray, padding: Padding) -> None:
        self.errors.append(relative_error(padding.tokens(wanted), padding.tokens(got)))
        self.cosines.append(cosine(_pooled(wanted, padding), _pooled(got, padding)))

    def facts(self) -> dict[str, Any]:
        kl = _mean(self.kl)
        return {
            "tokens": sum(len(one) for one in self.kl),
            "kl": kl,
            "top1": _mean(self.top1),
            "original_perplexity": _exp(_mean(self.losses[0])),
            "result_perplexity": _exp(_mean(self.losses[1])),
            "relative_error": float(np.mean(self.errors)) if self.errors else None,
            "cosine": _mean(self.cosines),
            "lowest_cosine": float(np.concatenate(self.cosines).min())
            if self.cosines
            else None,
        }


def _mean(parts: list[np.ndarray]) -> float | None:
    return float(np.concatenate(parts).mean()) if parts else None


def _exp(value: float | None) -> float | None:
    return float(np.exp(value)) if value is not None else None


def _pooled(output: np.ndarray, padding: Padding) -> np.ndarray:
    """Returns one vector for each sample: sequences are averaged over their tokens."""
    if output.ndim < 2:
        return output.reshape(1, -1)
    if output.ndim != 3:
        real = padding.real(output.shape[:1])
        return np.asarray(output.reshape(len(output), -1)[real])
    weights = padding.real(output.shape[:2]).astype(np.float64)
    total = np.maximum(weights.sum(1, keepdims=True), 1)
    return np.asarray((output * weights[..., None]).sum(1) / total)

"""Other settings for the same compilation, by kind, those that change least first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...ir import Calibration, Feeds
from ...passes.engine.pipeline.pipeline import Pipeline
from ..pipelines import PRESETS, QUICK_PRESET
from ..settings import CompileSettings, preset_passes

_LEAST_TOKENS, _LEAST_SAMPLES = 32, 4


@dataclass(frozen=True)
class Variant:
    """Another setting.

    Attributes:
        words: As the user would type it.
        calibration: Samples of the size that it would give; only their shapes count.
        pipeline: Its passes.
    """

    words: str
    calibration: Calibration | None
    pipeline: Pipeline


def fewer_samples(pipeline: Pipeline, calibration: Calibration | None) -> Iterator[Variant]:
    """Yields half of the samples, a quarter, and so on."""
    if calibration is None:
        return
    spare = len(calibration.feeds) - len(calibration.training)
    for count in _halves(len(calibration.training), _LEAST_SAMPLES):
        fewer = replace(calibration, feeds=calibration.feeds[: count + spare])
        yield Variant(f"--samples {count}", fewer, pipeline)


def shorter_sequences(
    pipeline: Pipeline, calibration: Calibration | None, length: int
) -> Iterator[Variant]:
    """Yields half of the tokens in a sample, a quarter, and so on."""
    if calibration is None or calibration.tokens is None:
        return
    for count in _halves(length, _LEAST_TOKENS):
        feeds = [_shortened(one, length, count) for one in calibration.feeds]
        words = f"--sequence-length {count}"
        yield Variant(words, replace(calibration, feeds=feeds), pipeline)


def quicker_presets(
    settings: CompileSettings, bits: float, calibration: Calibration | None
) -> Iterator[Variant]:
    """Yields the quick preset, unless that was chosen or passes were given."""
    if settings.passes is None and settings.options.preset != QUICK_PRESET:
        passes = preset_passes(PRESETS[QUICK_PRESET], bits, settings.options)
        yield Variant(f"--preset {QUICK_PRESET}", calibration, Pipeline(passes))


def _halves(count: int, least: int) -> Iterator[int]:
    while (count := count // 2) >= least:
        yield count


def _shortened(feeds: Feeds, length: int, count: int) -> Feeds:
    """Cuts every axis of ``length`` to ``count``."""
    return {
        name: array[tuple(slice(count if size == length else size) for size in array.shape)]
        for name, array in feeds.items()
    }

"""Int8 codes that processors without VNNI multiply as exactly as the others do."""

from __future__ import annotations

import numpy as np
import pytest

from mpqc.ir import Option
from mpqc.passes.engine.numerics.pair_sums import overflowing_rows, without_overflow

from .rounded import nearest, noise

COLUMNS = 65


def clipped_product(codes: np.ndarray, tokens: np.ndarray, start: int) -> np.ndarray:
    """Multiplies as vpmaddubsw does: sums of two neighbours are clipped to 16 bits."""
    terms = tokens.astype(np.int64)[start:] * codes[:, start:]
    terms = np.pad(terms, ((0, 0), (0, terms.shape[1] % 2)))
    pairs = terms.reshape(len(codes), -1, 2).sum(2)
    return np.asarray(np.clip(pairs, -(2**15), 2**15 - 1).sum(1))


def some_rows_overflow() -> np.ndarray:
    weight = noise(96, COLUMNS)
    weight[48:, 7] *= 40  # leaves small codes to the rest of the row
    weight[0] = 1.0
    return weight


def rounded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = nearest(matrix, Option(8, COLUMNS))
    return codes, scales[:, 0]


@pytest.mark.parametrize("start", [0, 1])
def test_no_processor_clips_a_sum(start: int) -> None:
    weight = some_rows_overflow()
    codes, scales = rounded(weight)
    clipped = overflowing_rows(codes)
    assert 0 < clipped.sum() < len(codes)
    fixed, _ = without_overflow(weight, codes, scales)
    assert not overflowing_rows(fixed).any()
    for tokens in (np.full(COLUMNS, 255), np.random.default_rng(0).integers(0, 256, COLUMNS)):
        exact = (fixed[:, start:].astype(np.int64) * tokens[start:]).sum(1)
        assert np.array_equal(clipped_product(fixed, tokens, start), exact)
    hottest = np.full(COLUMNS, 255)
    exact = (codes.astype(np.int64) * hottest).sum(1)
    assert not np.array_equal(clipped_product(codes, hottest, 0), exact)


def test_only_rows_that_overflow_are_rounded_anew() -> None:
    weight = some_rows_overflow()
    codes, scales = rounded(weight)
    fixed, steps = without_overflow(weight, codes, scales)
    same = ~overflowing_rows(codes)
    assert np.array_equal(fixed[same], codes[same])
    assert np.array_equal(steps[same], scales[same])
    assert (np.abs(steps[~same]) > np.abs(scales[~same])).all()
    assert (np.abs(steps[~same]) <= 2.04 * np.abs(scales[~same])).all()
    error = np.abs(fixed * steps.astype(np.float32)[:, None] - weight)
    assert (error <= 0.5001 * np.abs(steps.astype(np.float32))[:, None]).all()


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e9, -1e9])
def test_extreme_weights_stay_finite(value: float) -> None:
    weight = np.full((1, 4), value, np.float32)
    codes, scales = np.full((1, 4), 127, np.int8), np.array([1.0], np.float16)
    fixed, steps = without_overflow(weight, codes, scales)
    assert np.isfinite(steps).all()
    assert not np.isnan(fixed * steps.astype(np.float32)[:, None]).any()

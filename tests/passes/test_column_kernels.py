"""The compiled loops of GPTQ and coordinate descent, beside the same in plain Python."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from mpqc.passes.engine.numerics import column_kernels

from .rounded import noise

WIDTH = 24


def inputs(rows: int) -> dict[str, np.ndarray]:
    corner = noise(WIDTH, WIDTH, seed=2).astype(np.float32) / 4
    return {
        "first": noise(WIDTH, rows).astype(np.float32),
        "scales": (0.2 + np.abs(noise(WIDTH, rows, seed=1)) / 4).astype(np.float32),
        "slope": noise(WIDTH, rows, seed=3).astype(np.float32) / 4,
        "corner": corner,
        "inverse": (1 / (1 + np.abs(corner.diagonal()))).astype(np.float32),
    }


def rounded(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(values / scales), -8.0, 7.0))


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_errors_go_on_to_later_columns(rows: int) -> None:
    given = inputs(rows)
    left = given["first"].copy()
    wanted, rest = np.empty((WIDTH, rows)), left.astype(np.float64)
    for k in range(WIDTH):
        wanted[k] = rounded(rest[k], given["scales"][k])
        error = (rest[k] - wanted[k] * given["scales"][k]) * given["inverse"][k]
        rest[k + 1 :] -= given["corner"][k, k + 1 :, None] * error
    made, gone = np.empty_like(left), np.empty_like(left)
    column_kernels.compensate(
        left, given["scales"], given["corner"], given["inverse"], -8.0, 7.0, made, gone
    )
    assert np.mean(made != wanted) < 0.01, "but for ties"


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_each_code_is_the_best_for_the_codes_before(rows: int) -> None:
    given = inputs(rows)
    values = given["first"]
    wanted, slope = np.empty((WIDTH, rows)), given["slope"].astype(np.float64)
    for k in range(WIDTH):
        best = values[k] - slope[k] * given["inverse"][k]
        wanted[k] = rounded(best, given["scales"][k])
        step = wanted[k] * given["scales"][k] - values[k]
        slope[k + 1 :] += given["corner"][k, k + 1 :, None] * step
    made, steps = np.empty_like(values), np.empty_like(values)
    arguments = (given["corner"], given["inverse"], -8.0, 7.0, made, steps)
    column_kernels.descend(values, given["scales"], given["slope"].copy(), *arguments)
    assert np.mean(made != wanted) < 0.01, "but for ties"


def test_nothing_has_to_be_writable() -> None:
    """Containers run with file systems that nobody may write to."""
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from mpqc.passes.engine.numerics import column_kernels\n"
        "assert column_kernels.compensate is not None"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr

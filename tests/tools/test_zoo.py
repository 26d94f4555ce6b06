"""The benchmark over many models: what it feeds them, how it sizes results, what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpqc.frontend.model_inputs import ModelInput
from mpqc.ir import InfeasibleBudget
from mpqc.tools.benchmarks.zoo import sizing
from mpqc.tools.benchmarks.zoo.inputs import natural_feeds
from mpqc.tools.benchmarks.zoo.models import Entry
from mpqc.tools.benchmarks.zoo.page import AT_SIZE, summary

_WEIGHTS, _NODES, _LEAST, _MOST = 8000, 700, 2.5, 16.0


@pytest.fixture
def plain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the stand-in are no models, so their sizes are read from the disk."""
    monkeypatch.setattr(sizing, "model_bytes", lambda path: path.stat().st_size)


def _compiler(asked: list[float]) -> Callable[[float, Path], Any]:
    """Stands in for mpqc: files of as many bytes as the bits come to, and some for nodes."""

    def compiled(bits: float, output: Path) -> Any:
        asked.append(bits)
        if bits < _LEAST:
            raise InfeasibleBudget("too few", smallest=_LEAST)
        got = min(bits, _MOST)
        output.write_bytes(bytes(int(got * _WEIGHTS / 8) + _NODES))
        return SimpleNamespace(model=output, got=got, weights=_WEIGHTS)

    return compiled


@pytest.mark.usefixtures("plain_files")
@pytest.mark.parametrize("bits", [3.0, 7.9, 8.0, 13.0])
def test_results_are_nearly_as_large_as_allowed(bits: float, tmp_path: Path) -> None:
    size, asked = int(bits * _WEIGHTS / 8) + _NODES, list[float]()
    found = sizing.at_most(_compiler(asked), size, tmp_path / "0.onnx")
    assert 0.95 * size < found.stat().st_size <= size
    assert len(asked) <= 4


@pytest.mark.usefixtures("plain_files")
def test_a_result_that_has_all_bits_is_the_last(tmp_path: Path) -> None:
    asked: list[float] = []
    found = sizing.at_most(_compiler(asked), 10**6, tmp_path / "0.onnx")
    assert found.stat().st_size == int(_MOST * _WEIGHTS / 8) + _NODES
    assert len(asked) < 4


@pytest.mark.usefixtures("plain_files")
def test_what_nothing_reaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudget):
        sizing.at_most(_compiler([]), 1000, tmp_path / "0.onnx")


def test_the_summary_counts_what_was_compared() -> None:
    facts: dict[str, dict[str, Any]] = {
        "one": {
            "original": {"bytes": 9},
            "dynamic": {"bytes": 3, "error": 0.1},
            f"{AT_SIZE} dynamic": {"bytes": 3, "error": 0.04},
            "static": {"failed": "no"},
        },
        "two": {
            "dynamic": {"bytes": 3, "error": 0.1},
            f"{AT_SIZE} dynamic": {"bytes": 3, "error": 0.2},
            "nbits": {"bytes": 4, "error": 0.1},
            f"{AT_SIZE} nbits": {"failed": "no"},
        },
    }
    said = summary(facts)
    assert "half of its error 1 times of 3" in said
    assert "more than 1.1 times its error 2 times" in said


def test_models_are_fed_what_they_read() -> None:
    inputs = [
        ModelInput("picture", (1, 3, 16, 20), np.dtype(np.float16), "other"),
        ModelInput("ids", ("n", "length"), np.dtype(np.float32), "other", 43),
        ModelInput("mask", (1, 7), np.dtype(np.bool_), "mask"),
    ]
    entry = Entry("any", lambda folder: folder, {"length": 9}, masks_padding=True)
    first, second = natural_feeds(inputs, entry, 2, seed=0)
    assert first["picture"].shape == (1, 3, 16, 20)
    assert first["picture"].dtype == np.float16
    assert first["ids"].shape == (1, 9)
    assert set(np.unique(first["ids"])) <= set(range(43))
    assert not first["mask"].any()
    assert not np.array_equal(first["picture"], second["picture"])

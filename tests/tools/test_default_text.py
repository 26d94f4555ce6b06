"""What is read when the user names no text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mpqc.frontend import default_text
from mpqc.frontend.model_source import Source
from mpqc.frontend.samples import SampleMaker
from mpqc.ir import Calibration, read_model

from .tiny_models import language_folder


def calibration(folder: Path, samples: int) -> Calibration:
    source = Source(folder, folder / "model.onnx", (folder,))
    maker = SampleMaker.of(read_model(folder / "model.onnx"), source)
    return maker.calibration([], samples=samples, sequence_length=16, random=False, seed=0)


def test_half_is_prose_and_half_the_manual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_text, "own_prose", lambda: "a" * 500)
    monkeypatch.setattr(default_text, "python_topics", lambda: "b" * 500)
    found = calibration(language_folder(tmp_path / "model"), 6)
    letters = Counter(tuple(np.unique(feed["input_ids"]).tolist()) for feed in found.feeds)
    assert len(letters) == 2
    assert all(len(kind) == 1 and count == 4 for kind, count in letters.items())


def test_where_the_prose_ends_the_manual_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_text, "own_prose", lambda: "a" * 40)
    found = calibration(language_folder(tmp_path / "model"), 20)
    assert len(found.feeds) == 22


def test_the_prose_is_of_many_kinds() -> None:
    prose = default_text.own_prose()
    assert len(prose) > 60_000
    for kind in ("SELECT", "mmHg", "Assistant:", "Theorem", "der", "我", "def "):
        assert kind in prose

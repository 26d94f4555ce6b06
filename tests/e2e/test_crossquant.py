"""The preset crossquant, and int8 products, on a small OPT as users would compile it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import mpqc
from mpqc.frontend.model_inputs import HeadShape, model_inputs, random_feed
from mpqc.ir import read_model
from mpqc.tools.export import export_folder

from . import models
from .compiled import compiled

pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.ci_sample,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opt")
    torch.manual_seed(0)
    saved = models.hugging_face_folder(models.opt(), folder / "saved")
    return export_folder(saved, folder / "exported").model.parent


def test_the_preset(exported: Path, tmp_path: Path) -> None:
    found = compiled(exported, 4.5, tmp_path, preset="crossquant")
    plain = compiled(exported, 4.5, tmp_path / "plain", cache=tmp_path / "cache")
    assert found.evaluation.kl is not None
    assert plain.evaluation.kl is not None
    assert found.evaluation.kl < 1.2 * plain.evaluation.kl
    report = found.result.report["passes"]["rewrite-crossquant"]
    # What attention reads of the values is an output too: the cache.
    assert len(report["scaled"]) + len(report["better_plain"]) == 6
    assert "looked up as well" in " ".join(report["closed"].values())
    page = (found.result.output / "report.html").read_text()
    assert "entries that 8 bits round to zero" in page
    assert all(name in page for name in report["closed"])


def test_int8_products(exported: Path, tmp_path: Path) -> None:
    passes = (
        "normalize,partition-blocks,calibrate,rewrite-crossquant{mode=dynamic, alpha=search},"
        "annotate-sensitivity,allocate-bits{budget=8.6},quantize-weights,lower-matmul-nbits,"
        "verify-numerics"
    )
    result = mpqc.compile(
        exported,
        budget=8.6,
        output=tmp_path / "out",
        passes=passes,
        samples=4,
        sequence_length=16,
        random_calibration=True,
        cache=tmp_path / "cache",
    )
    assert result.measured["kl"] < 0.05  # random weights: 0.013
    assert result.got <= 8.6
    rows = {row["name"]: row for row in result.report["units"]}
    whole = result.report["passes"]["rewrite-crossquant"]["int8"]
    assert len(whole) == 12
    assert all(rows[name]["widths"] == {"8": rows[name]["rows"]} for name in whole)
    session = onnxruntime.InferenceSession(
        str(result.model), providers=["CPUExecutionProvider"]
    )
    inputs = model_inputs(read_model(exported / "model.onnx"))
    feed = random_feed(inputs, 5, np.random.default_rng(0), HeadShape(None, None))
    assert np.isfinite(session.run(None, feed)[0]).all()

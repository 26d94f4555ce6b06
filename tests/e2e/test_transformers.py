"""Models of transformers, through torch.export and through the genai builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mpqc
from mpqc.tools.export import export_folder

from . import models
from .compiled import HIGH, compiled

pytest.importorskip("transformers")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(300)]
SLOW = (pytest.mark.slow, pytest.mark.ci_sample)


def exported(make: Callable[[], Any], folder: Path) -> Path:
    torch.manual_seed(0)
    saved = models.hugging_face_folder(make(), folder / "saved")
    return export_folder(saved, folder / "exported").model.parent


@pytest.mark.parametrize("make", [models.opt, pytest.param(models.gpt2, marks=SLOW)])
def test_language_models(make: Callable[[], Any], tmp_path: Path) -> None:
    found = compiled(exported(make, tmp_path), HIGH, tmp_path)
    assert found.sweep == "torch"
    assert not found.reasons
    assert found.result.measured["objective"] == "logits"
    assert found.evaluation.kl is not None
    assert found.evaluation.kl < 2e-3
    low = compiled(tmp_path / "exported", 4.5, tmp_path / "low", cache=tmp_path / "cache")
    assert low.evaluation.kl is not None
    assert found.evaluation.kl < low.evaluation.kl < 0.5


@pytest.mark.parametrize("make", [models.vit])
def test_encoders_with_convolutions(make: Callable[[], Any], tmp_path: Path) -> None:
    found = compiled(exported(make, tmp_path), HIGH, tmp_path)
    assert not found.reasons
    assert {u["kinds"][0] for u in found.result.report["units"]} >= {"conv", "product"}
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.995


@pytest.mark.slow
@pytest.mark.ci_sample
def test_a_text_encoder(tmp_path: Path) -> None:
    found = compiled(exported(models.bert, tmp_path), HIGH, tmp_path)
    assert not found.reasons
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.995


@pytest.mark.slow
@pytest.mark.ci_sample
def test_a_decoder_with_a_cache(tmp_path: Path) -> None:
    """Straight from the folder: onnxruntime-genai's builder, then the compiler."""
    pytest.importorskip("onnxruntime_genai")
    torch.manual_seed(0)
    folder = models.hugging_face_folder(models.qwen(), tmp_path / "saved")
    models.byte_tokenizer(folder)
    result = mpqc.compile(
        folder, budget=4.5, output=tmp_path / "out", samples=4, sequence_length=32
    )
    assert result.got <= 4.5
    assert result.measured["kl"] < 0.5
    assert (result.output / "genai_config.json").is_file()

"""The presets of CMPQ on models of transformers, from file to file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpqc.ir import read_model
from mpqc.ir.analysis.storage import stored
from mpqc.tools.export import export_folder

from . import models
from .compiled import Compiled, compiled

pytest.importorskip("transformers")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(300)]


def compiled_preset(make: str, preset: str, folder: Path, budget: float) -> Compiled:
    torch.manual_seed(0)
    saved = models.hugging_face_folder(getattr(models, make)(), folder / "saved")
    exported = export_folder(saved, folder / "exported").model.parent
    return compiled(exported, budget, folder, file=preset != "cmpq-even", preset=preset)


def check(found: Compiled, preset: str, worst: float) -> None:
    assert not found.reasons
    assert found.evaluation.kl is not None
    assert found.evaluation.kl < worst
    facts = found.result.report["units"]
    assert all("channels" in unit and unit["loss"] >= 0 for unit in facts)
    split = found.result.report["passes"]["split-outliers"]
    assert split["activation"]["kept"] > 0
    assert split["quantization"]["kept"] > 0
    resident = stored(read_model(found.result.model)).resident_bits_per_weight
    assert found.result.resident_bits == resident
    assert (resident >= 32) == (preset == "cmpq")


@pytest.mark.slow
@pytest.mark.ci_sample
def test_an_opt_with_codebooks_on_a_grid(tmp_path: Path) -> None:
    check(compiled_preset("opt", "cmpq-grid", tmp_path, 6.0), "cmpq-grid", 0.5)


@pytest.mark.slow
@pytest.mark.ci_sample
@pytest.mark.parametrize("preset", ["cmpq", "cmpq-even"])
def test_an_opt(preset: str, tmp_path: Path) -> None:
    check(compiled_preset("opt", preset, tmp_path, 6.5), preset, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cmpq", "cmpq-grid", "cmpq-even"])
def test_a_decoder_with_grouped_heads(preset: str, tmp_path: Path) -> None:
    check(compiled_preset("qwen", preset, tmp_path, 6.5), preset, 0.5)

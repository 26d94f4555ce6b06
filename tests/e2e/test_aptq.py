"""The preset aptq: 2 and 4 bits by trace, against Hessians from behind the attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from mpqc.ir import UsageError

from ..passes.attending import language
from ..tools.tiny_models import vector_model
from . import models
from .compiled import compiled
from .test_transformers import exported

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(900)]


def check(model: Path, folder: Path, attentions: int) -> None:
    """Compiles at 3.5 bits; ``compiled`` checks bytes, units and that the runtime runs it."""
    found = compiled(model, 3.5, folder, preset="aptq")
    assert not found.reasons
    report = found.result.report
    assert report["passes"]["attention-hessians"] == {"attentions": attentions, "refused": {}}
    given = {next(iter(unit["options"])) for unit in report["units"]}
    assert given == {"2g64", "4g64"}
    assert all(len(unit["options"]) == 1 for unit in report["units"])
    assert {unit["score"]["metric"] for unit in report["units"]} == {"trace"}


def test_small_decoder(tmp_path: Path) -> None:
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    ir.save(language(), path)
    check(path, tmp_path / "out", 1)


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    model = vector_model(tmp_path / "vector.onnx")
    with pytest.raises(UsageError, match="the model has no softmax and no fused attention"):
        compiled(model, 3.5, tmp_path / "out", preset="aptq")


@pytest.mark.slow
@pytest.mark.ci_sample
@pytest.mark.parametrize("make", [models.opt, models.bert, models.gpt2])
def test_transformers(make: Callable[[], Any], tmp_path: Path) -> None:
    check(exported(make, tmp_path), tmp_path / "out", 2)

"""CPTQuant's presets on small transformers: inside the budget, every unit really changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import models
from .compiled import compiled
from .test_transformers import exported

pytest.importorskip("transformers")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(600)]
METRICS = {"cmpq": "cca", "pmpq": "pruning", "tdmpq": "taylor"}


def check(model: Path, method: str, folder: Path, cache: Path) -> dict[str, Any]:
    """Compiles by a preset; ``compiled`` checks bytes, units and that the runtime runs it."""
    found = compiled(model, 4.0, folder, preset=f"cptquant-{method}", cache=cache)
    assert not found.reasons
    assert 3.0 < found.result.got <= 4.0
    units = found.result.report["units"]
    assert all(len(unit["options"]) == 1 for unit in units)
    assert {unit["score"]["metric"] for unit in units} == {METRICS[method]}
    blocks = {unit["score"]["block"]: unit["score"]["value"] for unit in units}
    assert len(blocks) >= 3
    assert all(unit["score"]["value"] == blocks[unit["score"]["block"]] for unit in units)
    return {unit["name"]: unit["bits"] for unit in units}


def test_small_opt(tmp_path: Path) -> None:
    model = exported(models.opt, tmp_path)
    for method in METRICS:
        widths = check(model, method, tmp_path / method, tmp_path / "cache")
        assert len(set(widths.values())) > 1


@pytest.mark.slow
@pytest.mark.ci_sample
@pytest.mark.parametrize("make", [models.llama, models.bert])
def test_other_transformers(make: Callable[[], Any], tmp_path: Path) -> None:
    model = exported(make, tmp_path)
    for method in METRICS:
        check(model, method, tmp_path / method, tmp_path / "cache")

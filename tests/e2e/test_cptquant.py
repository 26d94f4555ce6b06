"""CPTQuant's presets on small transformers: inside the budget, every unit really changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpqc.ir import InfeasibleBudget

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


def deep_model(path: Path) -> Path:
    """Six feed-forward blocks on a residual stream, each of another strength."""
    rng, nodes, weights = np.random.default_rng(0), [], []
    for at in range(6):
        for name, shape in (("up", (64, 128)), ("down", (128, 64))):
            values = rng.standard_normal(shape) / np.sqrt(shape[0])
            values *= 0.2 * 1.7**at if name == "down" else 1.0
            weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}{at}"))
        nodes += [
            helper.make_node("MatMul", [f"x{at}", f"up{at}"], [f"a{at}"]),
            helper.make_node("Relu", [f"a{at}"], [f"b{at}"]),
            helper.make_node("MatMul", [f"b{at}", f"down{at}"], [f"c{at}"]),
            helper.make_node("Add", [f"x{at}", f"c{at}"], [f"x{at + 1}"]),
        ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64])
        for name in ("x0", "x6")
    ]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
@pytest.mark.ci_sample
def test_small_opt(tmp_path: Path) -> None:
    model = exported(models.opt, tmp_path)
    for method in METRICS:
        widths = check(model, method, tmp_path / method, tmp_path / "cache")
        assert len(set(widths.values())) > 1


@pytest.mark.parametrize("method", METRICS)
def test_as_published(method: str, tmp_path: Path) -> None:
    """Clusters at 16, 8 and 4 bits; what comes out larger than the budget is refused."""
    model = deep_model(tmp_path / "model" / "model.onnx")
    options: dict[str, Any] = {
        "preset": f"cptquant-{method}-published",
        "kernels": "always",
        "cache": tmp_path / "cache",
    }
    found = compiled(model, 14.0, tmp_path / "all", **options)
    units = {unit["name"]: unit for unit in found.result.report["units"]}
    widths = {name: next(iter(unit["widths"])) for name, unit in units.items()}
    assert {float(one) for one in widths.values()} == {16, 8, 4}
    scores = {name: unit["score"]["value"] for name, unit in units.items()}
    by_score = sorted(units, key=lambda name: scores[name])
    assert [float(widths[name]) for name in by_score] == sorted(map(float, widths.values()))
    halves = {name for name, width in widths.items() if float(width) == 16}
    assert set(found.reasons) == halves
    assert all(units[name]["bits"] == 16 for name in halves)
    assert found.result.resident_bits > found.result.got
    need = f"{math.ceil(found.result.got * 1000) / 1000:.3f}"
    with pytest.raises(InfeasibleBudget, match="with method=clusters is at least"):
        compiled(model, 4.0, tmp_path / "never", **options)
    with pytest.raises(InfeasibleBudget, match=f"with method=clusters is {need}"):
        compiled(model, found.result.got - 0.01, tmp_path / "less", **options)


@pytest.mark.slow
@pytest.mark.ci_sample
@pytest.mark.parametrize("make", [models.llama, models.bert])
def test_other_transformers(make: Callable[[], Any], tmp_path: Path) -> None:
    model = exported(make, tmp_path)
    for method in METRICS:
        check(model, method, tmp_path / method, tmp_path / "cache")

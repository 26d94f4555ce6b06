"""Hessian trace, activation norm and weight error, against their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import Option, Score, Unit, need_note, quantizable
from mpqc.passes.engine.numerics.gptq import nearest
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.statistics.squares import read_square

from .swept import CALIBRATE, context, language, run, sentences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def work(tmp_path: Path) -> PassContext:
    return context(tmp_path, sentences())


@pytest.fixture
def model(work: PassContext) -> ir.Model:
    return run(CALIBRATE, language(), work)


def judged(metric: str, model: ir.Model, work: PassContext) -> dict[str, float]:
    run(f"annotate-sensitivity{{metric={metric}}}", model, work)
    return {u.name: need_note(u.notes, Score).value for u in quantizable(model)}


def errors(unit: Unit, text: str) -> np.ndarray:
    """Squared errors of the rows of a unit, rounded to nearest."""
    option, weight = Option.parse(text), torch.from_numpy(unit.matrix())
    rounded = nearest(weight, option.bits, option.group, torch.ones(weight.shape[1]))
    gap = (rounded.dequantize(option.group) - weight).numpy()
    return np.asarray(np.square(gap).sum(axis=1))


def test_traces(model: ir.Model, work: PassContext) -> None:
    found = judged("trace", model, work)
    for unit in quantizable(model):
        rows = work.arrays.get(f"{unit.name}/0/rows")
        trace = np.trace(read_square(work.arrays, f"{unit.name}/0/hessian"))
        whole = np.kron(np.diag(rows), np.eye(unit.shape[1]) * trace / unit.shape[1])
        assert found[unit.name] == pytest.approx(np.trace(whole) / unit.size, rel=1e-4)
        loss = work.arrays.get(f"{unit.name}/loss")
        wanted = 0.5 * rows * trace / unit.shape[1] * errors(unit, "4g64")
        np.testing.assert_allclose(loss[:, 1], wanted, rtol=1e-3)


def test_activation_norms(model: ir.Model, work: PassContext) -> None:
    found = judged("activation-norm", model, work)
    samples = sentences().training
    table = next(unit for unit in quantizable(model) if unit.name == "table").matrix()
    inputs = np.concatenate([table[feed["ids"][0]] for feed in samples])
    # Tokens are weighted by their gradients (mean 1), so it is the norm up to that.
    assert found["up"] == pytest.approx(np.sqrt(np.square(inputs).mean()), rel=0.1)
    loss = work.arrays.get("up/loss")
    unit = next(unit for unit in quantizable(model) if unit.name == "up")
    np.testing.assert_allclose(loss[:, 0], found["up"] ** 2 * errors(unit, "2g64"), rtol=1e-3)


def test_weight_errors_have_no_scale(model: ir.Model, work: PassContext) -> None:
    before = judged("weight-error", model, work)
    for unit in quantizable(model):
        wanted = errors(unit, "2g64").sum() / np.square(unit.matrix()).sum()
        assert before[unit.name] == pytest.approx(wanted, rel=1e-3)
        unit.replace(unit.matrix() * 7)
    run(CALIBRATE, model, work)
    assert judged("weight-error", model, work) == pytest.approx(before, rel=1e-2)


def test_wider_is_better_for_every_metric(model: ir.Model, work: PassContext) -> None:
    for metric in ("trace", "activation-norm", "weight-error"):
        judged(metric, model, work)
        for unit in quantizable(model):
            totals = work.arrays.get(f"{unit.name}/loss").sum(axis=0)
            assert (np.diff(totals) < 0).all()

"""Input channels that stay in 16 bits: the algebra, the choice, and what comes out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.backend.onnxruntime import load, open_session
from mpqc.ir import (
    Budgeted,
    Calibrated,
    Option,
    OutlierColumns,
    Sensitivity,
    TensorStats,
    UsageError,
    annotate,
    need_note,
    note_of,
    quantizable,
)
from mpqc.ir.analysis.storage import stored
from mpqc.passes.annotate_sensitivity.keeping import tried_with_kept
from mpqc.passes.engine.numerics import knapsack
from mpqc.passes.engine.numerics.gptq import round_rows
from mpqc.passes.engine.numerics.outlier_split import OutlierSplit
from mpqc.passes.engine.numerics.row_errors import row_errors
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.statistics.moved import move
from mpqc.passes.engine.statistics.quadratic import Quadratic, outlier_columns
from mpqc.passes.engine.statistics.squares import put_square

from .rounded import context, noise, parse

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 96] x) => (float[n, 64] y)
    { a = MatMul(x, first)
      b = Relu(a)
      y = Gemm(b, second, bias) }"""
LOUD = (5, 40, 41, 90)  # input channels of `first`
ANNOTATE = "annotate-sensitivity{groups=[32, 64], keep=[4]}"
ROUND = "fold-permutations,quantize-weights,lower-matmul-nbits"


def hessian(columns: int, seed: int = 0, loud: tuple[int, ...] = ()) -> torch.Tensor:
    torch.manual_seed(seed)
    x = torch.randn(400, columns) @ (torch.eye(columns) + 0.1 * torch.randn(columns, columns))
    x[:, list(loud)] *= 30
    return x.T @ x / len(x)


def calibrated(tmp_path: Path) -> tuple[ir.Model, PassContext]:
    """A model with statistics as if a few input channels of ``first`` were huge."""
    weights = {"first": noise(96, 128), "second": noise(128, 64, seed=1), "bias": noise(64)}
    model, table = parse(CHAIN, weights), load("ort-cpu")
    kernels = tuple(dataclasses.replace(one, accuracy_level=0) for one in table.kernels)
    work = context(dataclasses.replace(table, kernels=kernels), tmp_path)
    for unit in quantizable(model):
        rows, columns = unit.shape
        loud = LOUD if unit.name == "first" else ()
        for what, array in {
            "rows": np.linspace(1, 2, rows),
            "activation": np.zeros(columns),
        }.items():
            work.arrays.put(f"{unit.name}/0/{what}", array.astype(np.float32))
        gram = hessian(columns, loud=loud).numpy()
        put_square(work.arrays, f"{unit.name}/0/hessian", gram.astype(np.float32))
        annotate(unit.notes, TensorStats(unit.name, 1, 200))
    annotate(model, Calibrated("key", "made up", 1, 200, "regression", "y"))
    return model, work


def result(model: ir.Model, inputs: np.ndarray) -> np.ndarray:
    with open_session(model, "CPUExecutionProvider", threads=1) as session:
        return session.run({"x": inputs})["y"]


@pytest.mark.parametrize("seed", range(4))
def test_kept_columns_make_up_for_the_others(seed: int) -> None:
    h, kept = hessian(24, seed), OutlierSplit(torch.tensor([1, 7, 8]), damping=0.0)
    exact = torch.randn(10, 24)
    error = kept.hidden(torch.randn(10, 24))
    stored_ = kept.completed(exact, exact + error, h)
    least = row_errors(exact, stored_, h)
    reduced = row_errors(error, torch.zeros_like(error), kept.reduced(h))
    torch.testing.assert_close(least, reduced, rtol=1e-2, atol=1e-4)
    for _ in range(20):  # no other values in the kept columns cost less
        other = stored_.clone()
        other[:, kept.columns] += 0.05 * torch.randn(10, 3)
        assert bool((row_errors(exact, other, h) >= least * 0.999).all())


def test_what_is_kept_costs_nothing_by_itself() -> None:
    kept = OutlierSplit(torch.tensor([0, 3]), damping=0.1)
    reduced = kept.reduced(hessian(6))
    assert not reduced[[0, 3]].any()
    assert not reduced[:, [0, 3]].any()
    assert torch.linalg.eigvalsh(reduced.double()).min() > -1e-6
    diagonal = torch.arange(1.0, 7.0)
    assert kept.reduced(diagonal).tolist() == [0, 2, 3, 0, 5, 6]
    weight = torch.randn(4, 6)
    torch.testing.assert_close(
        kept.completed(weight, torch.zeros(4, 6), diagonal)[:, [0, 3]],
        weight[:, [0, 3]].half().float(),
    )


@pytest.mark.parametrize("columns", [(), LOUD, (3,)])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 32), (8, 64)])
def test_what_rounding_has_paid_is_the_loss(
    tmp_path: Path, columns: tuple[int, ...], bits: int, group: int
) -> None:
    model, work = calibrated(tmp_path)
    unit = next(one for one in quantizable(model) if one.name == "first")
    quadratic = Quadratic.of(unit, work.arrays).keeping(np.array(columns))
    exact, parts = torch.from_numpy(unit.matrix()), quadratic.parts()
    left, factor = quadratic.hidden(exact), parts[0].factor
    rounded = round_rows(left, bits, group, factor)
    assert (rounded.paid is None) == (bits == 8), "what is not compensated is not paid for"
    stored_ = quadratic.completed(exact, rounded.dequantize(group))
    wanted = quadratic.loss(exact, stored_)
    found = quadratic.loss_of(exact, rounded, group, parts)
    # Kept channels are rounded to float16 as well, which nobody has paid for.
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-5 * float(wanted.mean()))
    torch.testing.assert_close(found.sum(), wanted.sum(), rtol=2e-3, atol=0.0)
    assert round_rows(left, bits, group, factor, refinements=1).paid is None


def test_one_option_of_each_width_stands_for_the_others() -> None:
    options = [Option.parse(one) for one in ("2g32", "2g64", "4g32", "4g128", "8g96a8", "f16")]
    tried, standing = tried_with_kept(options)
    assert [str(options[at]) for at in tried] == ["2g64", "4g128", "8g96a8", "f16"]
    assert standing == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(("name", "near"), [("first", 1e-6), ("second", 0.1)])
def test_all_groups_are_judged_with_channels_kept(
    tmp_path: Path, name: str, near: float
) -> None:
    """By trying them where that is worth it, or else about as well by one for all."""
    model, work = calibrated(tmp_path)
    unit = next(one for one in quantizable(model) if one.name == name)
    found = []
    for groups in ("[32, 64]", "[32]"):
        judge = f"annotate-sensitivity{{groups={groups}, keep=[4], bits=[2, 4]}}"
        Pipeline.parse(judge).run(model, work)
        options = need_note(unit.notes, Sensitivity).options
        kept = work.arrays.get(f"{unit.name}/keep/4").sum(0)
        found.append(dict(zip(options, kept, strict=True)))
    assert len(found[1]) < len(found[0])
    for option, loss in found[1].items():
        assert found[0][option] == pytest.approx(loss, rel=near), option


def test_loud_channels_are_kept_inside_the_budget(tmp_path: Path) -> None:
    model, work = calibrated(tmp_path)
    Pipeline.parse(f"{ANNOTATE},allocate-bits{{budget=4.5, fold=true}}").run(model, work)
    note = need_note(model, Budgeted)
    units = {unit.name: unit for unit in quantizable(model)}
    assert need_note(units["first"].notes, OutlierColumns).columns == len(LOUD)
    assert tuple(outlier_columns(units["first"], work.arrays)) == LOUD
    assert work.report["allocate-bits"]["kept"] == {"first": len(LOUD)}
    assert note_of(units["second"].notes, OutlierColumns) is None
    Pipeline.parse("fold-permutations,quantize-weights").run(model, work)
    simulated = ir.from_proto(ir.to_proto(model))
    exact = noise(96, 128)[list(LOUD)].astype(np.float16)
    assert not np.array_equal(work.arrays.get("first/outliers/kept"), exact)  # it makes up
    Pipeline.parse("lower-matmul-nbits").run(model, work)
    size = stored(model)
    assert size.bits_per_weight == pytest.approx(note.got, abs=24 * 8 / size.weights)
    assert size.bits_per_weight <= note.got <= 4.5
    assert size.weights == 96 * 128 + 128 * 64
    assert size.resident_bits_per_weight == pytest.approx(note.resident, rel=0.01)
    inputs = noise(5, 96, seed=3)
    np.testing.assert_allclose(
        result(model, inputs), result(simulated, inputs), rtol=1e-4, atol=1e-3
    )


def test_keeping_lowers_the_loss_at_the_same_bytes(tmp_path: Path) -> None:
    losses: list[float] = []
    for keep in ("", ", keep=[4]"):
        model, work = calibrated(tmp_path / str(len(losses)))
        Pipeline.parse(
            f"annotate-sensitivity{{groups=[32, 64]{keep}}},"
            f"allocate-bits{{budget=4.5, fold=true}},{ROUND}"
        ).run(model, work)
        losses.append(need_note(model, Budgeted).loss)
    assert losses[1] < 0.7 * losses[0]


@pytest.mark.timeout(60)
def test_what_is_kept_never_costs_the_budget(tmp_path: Path) -> None:
    """Half of the channels in 16 bits lose next to nothing, and take all bytes there are."""
    for budget in (2.71, 3.0, 5.0, 9.0, 9.5):  # at 9 bits all fits, at a price of zero
        model, work = calibrated(tmp_path)
        keep = ANNOTATE.replace("[4]", "[4, 48]")
        Pipeline.parse(f"{keep},allocate-bits{{budget={budget}}}").run(model, work)
        assert need_note(model, Budgeted).got <= budget


def test_the_prediction_is_what_rounding_finds(tmp_path: Path) -> None:
    model, work = calibrated(tmp_path)
    Pipeline.parse(f"{ANNOTATE},allocate-bits{{budget=4.5}}").run(model, work)
    predicted = need_note(model, Budgeted).loss
    exact = {unit.name: torch.from_numpy(unit.matrix()) for unit in quantizable(model)}
    Pipeline.parse("quantize-weights{refinements=0}").run(model, work)
    found = sum(
        float(Quadratic.of(unit, work.arrays).loss(exact[unit.name], rounded).sum())
        for unit in quantizable(model)
        for rounded in [torch.from_numpy(unit.matrix())]
    )
    assert found == pytest.approx(predicted, rel=0.25)
    assert need_note(model, Budgeted).loss == pytest.approx(found, rel=1e-3)


def test_the_indices_follow_columns_that_move(tmp_path: Path) -> None:
    model, work = calibrated(tmp_path)
    Pipeline.parse(f"{ANNOTATE},allocate-bits{{budget=4.5}}").run(model, work)
    unit = next(one for one in quantizable(model) if one.name == "first")
    order = np.random.default_rng(0).permutation(96)
    move(unit, work.arrays, "columns", order)
    now = outlier_columns(unit, work.arrays)
    assert set(order[now]) == set(LOUD)
    assert (np.diff(now) > 0).all()
    ranked = work.arrays.get("first/keep/columns")
    assert set(order[ranked]) == set(LOUD)


def test_judging_again_forgets_the_losses_of_before(tmp_path: Path) -> None:
    """What moved since is in memory, where it would hide the new losses in their file."""
    model, work = calibrated(tmp_path)
    Pipeline.parse(f"{ANNOTATE},allocate-bits{{budget=3.5, fold=true}}").run(model, work)
    Pipeline.parse("fold-permutations").run(model, work)
    Pipeline.parse("annotate-sensitivity{metric=weight-error}").run(model, work)
    assert not any("/keep/" in name for name in work.arrays.names())
    for unit in quantizable(model):
        assert f"{unit.name}/loss" not in work.arrays.in_memory()


def test_a_price_is_what_the_last_byte_gains() -> None:
    loss = np.array([[8.0, 4.0, 1.0]] * 4)
    item = knapsack.Item(loss, np.array([10, 20, 40]), 0, 1)
    assert knapsack.price([item], 39) is None
    assert knapsack.price([item], 160) == 0.0
    found = knapsack.price([item], 60)
    assert found is not None
    assert 0.15 <= found <= 0.4 * 1.02


@pytest.mark.parametrize(
    ("passes", "target", "message"),
    [
        ("annotate-sensitivity{keep=[8, 8]}", "ort-cpu", "have to rise"),
        ("annotate-sensitivity{keep=[0]}", "ort-cpu", "have to rise"),
        ("annotate-sensitivity{metric=trace, keep=[8]}", "ort-cpu", "has no use for keep"),
        ("annotate-sensitivity{keep=[8]}", "qdq", "keeps no input channels"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    passes: str, target: str, message: str, tmp_path: Path
) -> None:
    model, work = calibrated(tmp_path)
    work = dataclasses.replace(work, capabilities=load(target))
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(passes).run(model, work)


def test_insert_qdq_refuses_what_it_would_lose(tmp_path: Path) -> None:
    model, work = calibrated(tmp_path)
    two = tuple(kernel for kernel in work.capabilities.kernels if kernel.bits > 2)
    table = dataclasses.replace(work.capabilities, kernels=two)
    work = dataclasses.replace(work, capabilities=table)
    text = f"raise-opset,{ANNOTATE},allocate-bits{{budget=5.5}},quantize-weights,insert-qdq"
    with pytest.raises(UsageError, match="keeps no input channels"):
        Pipeline.parse(text).run(model, work)


def test_inputs_that_are_always_zero_leave_nothing_to_make_up_for() -> None:
    split = OutlierSplit(torch.tensor([1, 3]), damping=0.1)
    nothing = torch.zeros(6, 6)
    assert not split.reduced(nothing).any()
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).half().float()
    assert torch.equal(split.completed(weight, weight, nothing), weight)

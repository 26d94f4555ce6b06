"""Rows that make up for each other's errors: the algebra, and what it does to whole units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mpqc.ir import BitAllocation, Unit, UsageError, need_note, quantizable
from mpqc.passes.engine.numerics.coupled_rows import _feedback, round_coupled
from mpqc.passes.engine.numerics.factor import factorize
from mpqc.passes.engine.numerics.gptq import Rounded, gptq, nearest
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.statistics.coupling import between_rows, read_coupling
from mpqc.passes.engine.statistics.moved import grow, move
from mpqc.passes.engine.statistics.quadratic import Quadratic
from mpqc.passes.engine.statistics.squares import put_square

from . import attending
from .swept import CALIBRATE, context, language, run, sentences

pytestmark = pytest.mark.usefixtures("one_thread")
GROUP = 32
COUPLED = f"{CALIBRATE}{{coupled=true}},annotate-sensitivity,allocate-bits{{budget=4.0}}"


def form(rows: int, seed: int) -> torch.Tensor:
    """A positive matrix with a few directions that count for more."""
    wide = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return wide @ wide.T + torch.eye(rows)


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(seed))
    return weight, form(96, seed + 1), form(64, seed + 2)


def rounder(hessian: torch.Tensor, bits: int) -> Callable[[torch.Tensor], Rounded]:
    factor = factorize(hessian, 0.01)
    return lambda rows: gptq(rows, bits, GROUP, factor, refinements=1)


def in_a_byte(rows: torch.Tensor) -> Rounded:
    return nearest(rows, 8, GROUP, torch.ones(rows.shape[1]))


def cost(coupling: torch.Tensor, error: torch.Tensor, hessian: torch.Tensor) -> float:
    return float(((coupling @ error @ hessian) * error).sum())


@pytest.mark.parametrize("seed", range(5))
def test_errors_cancel_between_rows(seed: int) -> None:
    weight, coupling, hessian = case(seed)
    made = rounder(hessian, 3)
    (together,) = round_coupled(weight, coupling, [torch.arange(96)], [made], [GROUP])
    apart = made(weight).dequantize(GROUP) - weight
    found = together.dequantize(GROUP) - weight
    assert cost(coupling, found, hessian) < 0.7 * cost(coupling, apart, hessian)
    assert float((found @ hessian * found).sum()) < 3 * float((apart @ hessian * apart).sum())


def test_finer_rows_make_up_for_coarser_ones() -> None:
    weight, coupling, hessian = case(7)
    coarse, fine = torch.arange(0, 96, 2), torch.arange(1, 96, 2)
    classes = [coarse, fine]
    rounders = [rounder(hessian, 2), in_a_byte]
    made = round_coupled(weight, coupling, classes, rounders, [GROUP, GROUP])
    found = torch.empty_like(weight)
    apart = torch.empty_like(weight)
    for rows, rounded, one in zip(classes, made, rounders, strict=True):
        found[rows] = rounded.dequantize(GROUP) - weight[rows]
        apart[rows] = one(weight[rows]).dequantize(GROUP) - weight[rows]
    assert cost(coupling, found, hessian) < 0.4 * cost(coupling, apart, hessian)
    assert float(found[fine].abs().mean()) > 10 * float(apart[fine].abs().mean())


def test_rows_that_do_not_act_together_are_rounded_as_alone() -> None:
    weight, coupling, hessian = case(3)
    made = rounder(hessian, 3)
    alone = torch.diag(coupling.diagonal())
    (found,) = round_coupled(weight, alone, [torch.arange(96)], [made], [GROUP])
    expected = made(weight)
    torch.testing.assert_close(found.codes, expected.codes, rtol=0, atol=0)
    torch.testing.assert_close(found.scales, expected.scales, rtol=0, atol=0)


def test_feedback_is_the_triangular_factor() -> None:
    coupling = form(40, 1)
    damped = coupling + torch.eye(40) * 0.1 * coupling.diagonal().mean()
    feedback = _feedback(coupling)
    torch.testing.assert_close(feedback, feedback.tril())
    torch.testing.assert_close(feedback.diagonal(), torch.ones(40))
    inverse = torch.linalg.inv(feedback)
    inner = inverse.T @ damped @ inverse
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=1e-3, atol=1e-3)


def test_a_singular_coupling_is_damped_until_it_can_be_factorized() -> None:
    weight, _, hessian = case(2)
    flat = torch.ones(96, 96) - 1e-3 * torch.eye(96)  # not even positive semidefinite
    (found,) = round_coupled(weight, flat, [torch.arange(96)], [rounder(hessian, 4)], [GROUP])
    assert torch.isfinite(found.dequantize(GROUP)).all()


def test_what_is_between_rows_is_the_rest_of_the_form() -> None:
    error, coupling, hessian = case(4)
    whole = 0.5 * cost(coupling, error, hessian)
    alone = 0.5 * cost(torch.diag(coupling.diagonal()), error, hessian)
    assert between_rows(coupling, error, hessian) == pytest.approx(whole - alone, rel=1e-4)


@pytest.fixture
def work(tmp_path: Path) -> PassContext:
    return context(tmp_path, sentences(count=10))


def unit_costs(options: str, work: PassContext) -> dict[str, float]:
    """The coupled form of every unit's error, by name; those without are left out."""
    model = run(COUPLED, language(), work)
    exact = {unit.name: unit.matrix() for unit in quantizable(model)}
    terms = {unit.name: Quadratic.of(unit, work.arrays) for unit in quantizable(model)}
    run(f"quantize-weights{{{options}}}", model, work)
    found = {}
    for unit in quantizable(model):
        coupling = read_coupling(unit, work.arrays)
        if coupling is not None:
            error = torch.from_numpy(unit.matrix() - exact[unit.name])
            found[unit.name] = cost(coupling, error, terms[unit.name].hessians[0]) / 2
    return found


def test_every_coupled_unit_loses_less(work: PassContext) -> None:
    together, apart = unit_costs("coupled=true", work), unit_costs("", work)
    assert set(together) == {"up", "down", "up2", "down2"}, "not the logits, not the table"
    assert sum(together.values()) < 0.95 * sum(apart.values())


def test_the_prediction_counts_what_is_between_rows(work: PassContext) -> None:
    model = run(COUPLED, language(), work)
    exact = {unit.name: torch.from_numpy(unit.matrix()) for unit in quantizable(model)}
    run("quantize-weights{coupled=true}", model, work)
    for unit in quantizable(model):
        stored, quadratic = torch.from_numpy(unit.matrix()), Quadratic.of(unit, work.arrays)
        expected = float(quadratic.loss(exact[unit.name], stored).sum())
        coupling = read_coupling(unit, work.arrays)
        if coupling is not None:
            error = stored - exact[unit.name]
            expected += between_rows(coupling, error, quadratic.hessians[0])
        loss = need_note(unit.notes, BitAllocation).loss
        assert loss == pytest.approx(expected, rel=1e-3)


def test_coupling_follows_rows_that_move_and_grow(work: PassContext) -> None:
    model = run(COUPLED, language(), work)
    unit = next(one for one in quantizable(model) if one.name == "up")
    before = read(unit, work)
    order = np.random.default_rng(0).permutation(unit.shape[0]).astype(np.int32)
    move(unit, work.arrays, "rows", order)
    torch.testing.assert_close(read(unit, work), before[order][:, order])
    factors = np.linspace(0.5, 2, len(order)).astype(np.float32)
    grow(unit, work.arrays, "rows", factors)
    wide = torch.from_numpy(np.outer(factors, factors))
    torch.testing.assert_close(read(unit, work) * wide, before[order][:, order])


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_gradients_that_vanish_or_overflow_couple_nothing(
    value: float, work: PassContext
) -> None:
    model = run(COUPLED, language(), work)
    unit = next(one for one in quantizable(model) if one.name == "up")
    broken = np.full((unit.shape[0], unit.shape[0]), value, np.float32)
    put_square(work.arrays, "up/0/coupling", broken)
    assert read_coupling(unit, work.arrays) is None
    run("quantize-weights{coupled=true}", model, work)


def read(unit: Unit, work: PassContext) -> torch.Tensor:
    found = read_coupling(unit, work.arrays)
    assert found is not None
    return found


def test_without_gradients_rows_are_rounded_alone(
    work: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(work.progress), "say", lambda _, text: said.append(text))
    monkeypatch.setattr(type(work.runner), "unsupported", lambda *_: {"Relu": "no lowering"})
    run(f"{COUPLED},quantize-weights{{coupled=true}}", language(), work)
    assert any("nothing is known between rows" in text for text in said)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (COUPLED.replace("{coupled=true}", ""), "needs to know how rows act together"),
        (COUPLED.replace(",annot", ",attention-hessians,annot"), "Hessians of their own"),
    ],
)
def test_pipelines_that_cannot_couple_are_refused_before_they_run(
    passes: str, message: str, tmp_path: Path
) -> None:
    work = context(tmp_path, sentences(4, 12))
    pipeline = Pipeline.parse(f"{passes},quantize-weights{{coupled=true}}")
    with pytest.raises(UsageError, match=message):
        pipeline.run(attending.language(), work)
    assert not work.report


def test_rows_with_hessians_of_their_own_are_refused(tmp_path: Path) -> None:
    work = context(tmp_path, sentences(4, 12))
    passes = COUPLED.replace(",annot", ",attention-hessians{probes=2},annot")
    model = run(passes, attending.language(), work)
    with pytest.raises(UsageError, match="Hessians of their own"):
        run("quantize-weights{coupled=true}", model, work)


def test_nearest_couples_nothing() -> None:
    with pytest.raises(UsageError, match="coupled has no effect"):
        Pipeline.parse("quantize-weights{rounding=nearest, coupled=true}")

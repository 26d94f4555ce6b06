"""Allocations on a calibrated model: inside the budget, and the best that fits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime.capabilities import load
from mpqc.ir import (
    BitAllocation,
    Budgeted,
    InfeasibleBudget,
    Option,
    Score,
    Unit,
    UsageError,
    annotate,
    find_units,
    need_note,
    quantizable,
)
from mpqc.passes.engine.emission.cost import expansion_bytes, overhead_bytes
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.spec import parse_passes

from .rounded import noise, parse
from .swept import CALIBRATE, TABLE, context, language, run, sentences, vectors

pytestmark = pytest.mark.usefixtures("one_thread")
READY = f"{CALIBRATE},annotate-sensitivity{{groups=[32, 64]}}"


@pytest.fixture
def work(tmp_path: Path) -> PassContext:
    return context(tmp_path, sentences())


@pytest.fixture
def model(work: PassContext) -> ir.Model:
    return run(READY, language(), work)


def stored_bytes(unit: Unit) -> int:
    """What the unit takes, counted from its allocation alone."""
    note = need_note(unit.notes, BitAllocation)
    rows, columns = unit.shape
    assert sum(note.counts) == rows
    codes = sum(
        Option.parse(text).row_bytes(columns) * count
        for text, count in zip(note.options, note.counts, strict=True)
    )
    return codes + overhead_bytes(unit, list(map(Option.parse, note.options)), load("ort-cpu"))


@pytest.mark.parametrize("granularity", ["row", "unit"])
@pytest.mark.parametrize("budget", [3.0, 3.7, 4.5, 6.25, 9.0])
def test_budget_is_honoured_and_used(
    budget: float, granularity: str, model: ir.Model, work: PassContext
) -> None:
    run(f"allocate-bits{{budget={budget}, granularity={granularity}}}", model, work)
    units = quantizable(model)
    weights = sum(unit.size for unit in units)
    used = sum(stored_bytes(unit) for unit in units) * 8 / weights
    note = need_note(model, Budgeted)
    assert (note.asked, note.weights) == (budget, weights)
    assert used <= note.got + 1e-9 <= budget + 2e-9
    assert note.got > min(budget, 8.5) - (0.25 if granularity == "row" else 1.0)
    losses = [need_note(unit.notes, BitAllocation).loss for unit in units]
    assert note.loss == pytest.approx(sum(losses))


def test_expanding_widths_cost_memory_not_file(work: PassContext) -> None:
    ready = READY.replace("groups=[32, 64]", "groups=[64], expand=true")
    model = run(f"{ready},allocate-bits{{budget=3.5}}", language(), work)
    units = quantizable(model)
    taken = [need_note(unit.notes, BitAllocation) for unit in units]
    options = {Option.parse(text) for note in taken for text in note.options}
    assert any(option.expands for option in options)
    note = need_note(model, Budgeted)
    used = sum(stored_bytes(unit) for unit in units) + expansion_bytes(options)
    assert used * 8 / note.weights == pytest.approx(note.got)
    assert note.got <= 3.5
    assert note.resident > note.got + 0.5


def test_rows_of_a_class_stand_together(model: ir.Model, work: PassContext) -> None:
    run("allocate-bits{budget=4.0}", model, work)
    mixed = 0
    for unit in quantizable(model):
        note = need_note(unit.notes, BitAllocation)
        name = f"{unit.name}/order"
        assert (name in work.arrays) == (len(note.options) > 1)
        if len(note.options) > 1:
            mixed += 1
            order = work.arrays.get(name)
            assert sorted(order) == list(range(unit.shape[0]))
            bits = [Option.parse(text).row_bytes(unit.shape[1]) for text in note.options]
            assert bits == sorted(bits)
    assert mixed


def test_rows_beat_units_and_units_beat_uniform(model: ir.Model, work: PassContext) -> None:
    losses = []
    for options in ("granularity=row", "granularity=unit", "method=uniform"):
        run(f"allocate-bits{{budget=4.6, {options}}}", model, work)
        losses.append(need_note(model, Budgeted).loss)
    assert losses[0] <= losses[1] * 1.001
    assert losses[1] <= losses[2] * 1.001
    for unit in quantizable(model):
        assert need_note(unit.notes, BitAllocation).options == ("4g32",)


def test_a_second_allocation_replaces_the_first(model: ir.Model, work: PassContext) -> None:
    run("allocate-bits{budget=4.0}", model, work)
    run("allocate-bits{budget=20.0, method=uniform}", model, work)
    assert not [name for name in work.arrays.names() if name.endswith("/order")]
    for unit in quantizable(model):
        assert need_note(unit.notes, BitAllocation).options == ("8g32",)


@pytest.mark.parametrize("options", ["", ", granularity=unit", ", method=uniform"])
def test_the_smallest_budget_that_is_named_is_feasible(
    options: str, model: ir.Model, work: PassContext
) -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        run(f"allocate-bits{{budget=1.0{options}}}", model, work)
    found = re.search(r"the smallest.* is ([\d.]+)", caught.value.message)
    assert found is not None
    assert f"--budget {found[1]}" in caught.value.hint
    least = float(found[1])
    run(f"allocate-bits{{budget={least}{options}}}", model, work)
    assert need_note(model, Budgeted).got == pytest.approx(least, abs=1e-3)
    with pytest.raises(InfeasibleBudget):
        run(f"allocate-bits{{budget={least - 0.002}{options}}}", model, work)


def test_float_units_count_and_are_named(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 72] y)
        { a = MatMul(x, w)
          y = MatMul(a, v) }"""
    text = text.replace("y = MatMul(a, v)", "y = MatMul(a, v) k = Identity(v)")
    text = text.replace("float[n, 72] y)", "float[n, 72] y, float[90, 72] k)")
    model = parse(text, {"w": noise(64, 90), "v": noise(90, 72)})
    work = context(tmp_path, vectors())
    run(f"{READY},allocate-bits{{budget=20.0}}", model, work)
    sizes = {unit.name: unit.size for unit in find_units(model)}
    weights = sum(sizes.values())
    least = (sizes["v"] * 32 + sizes["w"] * 2.25) / weights
    assert need_note(model, Budgeted).got > least
    kept = sizes["v"] * 4
    with pytest.raises(InfeasibleBudget, match=f"{kept} bytes of it stay in float: 'v'"):
        run("allocate-bits{budget=4.0}", model, work)


def test_allocation_repeats(work: PassContext) -> None:
    found = []
    for _ in range(2):
        model = run(f"{READY},allocate-bits{{budget=3.9}}", language(), work)
        notes = [need_note(unit.notes, BitAllocation) for unit in quantizable(model)]
        orders = {
            name: np.array(work.arrays.get(name))
            for name in work.arrays.names()
            if name.endswith("/order")
        }
        found.append((notes, orders))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    for name, order in found[0][1].items():
        np.testing.assert_array_equal(order, found[1][1][name])


@pytest.mark.parametrize("budget", ["0.0", "-1.0", "65.0", "nan", "inf"])
def test_nonsense_budgets(budget: str) -> None:
    with pytest.raises(UsageError):
        parse_passes(f"allocate-bits{{budget={budget}}}")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("method=cluster, bits=[8, 4]", "did you mean 'clusters'"),
        ("method=clusters", "needs bits"),
        ("method=clusters, bits=[4, 8]", "have to fall"),
        ("method=clusters, bits=[8, 4], share=0.5", "no use for share"),
        ("method=clusters, bits=[8, 4], granularity=unit", "no use for granularity"),
        ("method=uniform", "needs budget"),
        ("method=uniform, budget=4.0, bits=[4]", "no use for bits"),
        ("method=uniform, budget=4.0, fold=true", "no use for fold"),
        ("method=ratio, bits=[4, 2]", "needs share or budget"),
        ("method=ratio, budget=4.0, bits=[4]", "two bits"),
        ("method=ratio, bits=[4, 2], share=1.5", "between 0 and 1"),
        ("granularity=unit", "needs budget"),
        ("granularity=unit, budget=4.0, fold=true", "say fold=false"),
    ],
)
def test_methods_refuse_what_they_would_ignore(options: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(f"allocate-bits{{{options}}}")
    assert word in f"{caught.value.message} {caught.value.hint}"


def test_channels_are_kept_inside_a_budget_only(work: PassContext) -> None:
    uniform = "annotate-sensitivity{keep=[8]},allocate-bits{budget=4, method=uniform}"
    with pytest.raises(UsageError, match="keeps no channels"):
        run(f"{CALIBRATE},{uniform}", language(), work)


def scored(model: ir.Model, scores: dict[str, tuple[float, int]]) -> ir.Model:
    """Replaces the scores that annotate-sensitivity left."""
    for unit in quantizable(model):
        annotate(unit.notes, Score(unit.name, "made up", *scores[unit.name]))
    return model


def widths(model: ir.Model) -> dict[str, int]:
    """Returns the width of every unit, all of whose rows have the same."""
    notes = [need_note(unit.notes, BitAllocation) for unit in quantizable(model)]
    assert all(len(note.options) == 1 for note in notes)
    return {note.unit: Option.parse(note.options[0]).bits for note in notes}


def test_clusters_give_blocks_the_width_of_their_centroid(
    model: ir.Model, work: PassContext
) -> None:
    blocks = {"table": 0, "up": 1, "down": 1, "up2": 2, "down2": 3, "head": 0}
    by_block = [0.4, 0.9, 0.1, 0.45]
    scores = {name: (by_block[block], block) for name, block in blocks.items()}
    run("allocate-bits{method=clusters, bits=[8, 4, 2]}", scored(model, scores), work)
    of_block = [4, 8, 2, 4]
    assert widths(model) == {name: of_block[block] for name, block in blocks.items()}


def test_clusters_beyond_the_budget_are_refused_before_the_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residual blocks of one size: one has 8 bits, one 4, the others and the table 2."""
    judged = "annotate-sensitivity{metric=cca, bits=[2, 4, 8]}"
    text = f"{CALIBRATE},{judged},allocate-bits{{method=clusters, bits=[8, 4, 2]"
    model = run(f"{text}}}", language(), context(tmp_path / "whole", sentences(count=16)))
    got = need_note(model, Budgeted).got
    monkeypatch.setattr(
        "mpqc.passes.calibrate.calibrate._gather", lambda *_, **__: pytest.fail("ran")
    )
    with pytest.raises(
        InfeasibleBudget, match=r"with method=clusters is at least (\d.*)"
    ) as no:
        run(
            f"{text}, budget=2.3}}",
            language(),
            context(tmp_path / "small", sentences(count=16)),
        )
    least = float(no.value.message.rpartition(" ")[2])
    assert 2.3 < least <= got


def test_equal_scores_are_one_cluster_at_the_first_width(
    model: ir.Model, work: PassContext
) -> None:
    names = ("table", "up", "down", "up2", "down2", "head")
    scored(model, {name: (0.5, at) for at, name in enumerate(names)})
    run("allocate-bits{method=clusters, bits=[8, 4, 2]}", model, work)
    assert set(widths(model).values()) == {8}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_ratio_averages_as_its_equation_says(
    share: float, model: ir.Model, work: PassContext
) -> None:
    run(f"allocate-bits{{method=ratio, bits=[4, 2], share={share}}}", model, work)
    units = {unit.name: unit for unit in quantizable(model)}
    weights, largest = (fold(unit.size for unit in units.values()) for fold in (sum, max))
    chosen = widths(model)
    top = [name for name, bits in chosen.items() if bits == 4]
    real = sum(units[name].size for name in top) / weights
    assert abs(real - share) <= largest / weights / 2
    average = sum(chosen[name] * unit.size for name, unit in units.items()) / weights
    assert average == pytest.approx(4 * real + 2 * (1 - real))
    values = {name: need_note(unit.notes, Score).value for name, unit in units.items()}
    rest = values.keys() - set(top)
    assert not top or not rest or min(values[t] for t in top) >= max(values[r] for r in rest)


@pytest.mark.parametrize("budget", [3.0, 4.0, 5.0])
def test_a_ratio_of_the_budget_is_the_largest_that_fits(
    budget: float, model: ir.Model, work: PassContext
) -> None:
    got = []
    for count in range(7):
        sizes = [u.size for u in sorted(quantizable(model), key=lambda u: -score_of(u))]
        share = sum(sizes[:count]) / sum(sizes)
        run(f"allocate-bits{{method=ratio, bits=[4, 2], share={share}}}", model, work)
        got.append(need_note(model, Budgeted).got)
    run(f"allocate-bits{{method=ratio, bits=[4, 2], budget={budget}}}", model, work)
    assert need_note(model, Budgeted).got == max(one for one in got if one <= budget)


def score_of(unit: Unit) -> float:
    return need_note(unit.notes, Score).value


def test_units_without_a_width_take_the_next_wider(model: ir.Model, work: PassContext) -> None:
    run("allocate-bits{method=ratio, bits=[5, 3], share=0.5}", model, work)
    assert set(widths(model).values()) == {8, 4}


def test_unknown_granularity() -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes("allocate-bits{budget=4.0, granularity=rows}")
    assert "row" in caught.value.hint


def test_uniform_means_the_same_width_where_units_offer_others(tmp_path: Path) -> None:
    """A table that can be looked up at 4 and 8 bits only made all products 2 bits wide."""
    table = dataclasses.replace(TABLE, lookup_bits=(4, 8))
    work = dataclasses.replace(context(tmp_path, sentences()), capabilities=table)
    model = language()
    allocate = "annotate-sensitivity,allocate-bits{budget=5.0, method=uniform}"
    run(f"{CALIBRATE},{allocate}", model, work)
    notes = [need_note(unit.notes, BitAllocation) for unit in quantizable(model)]
    assert {Option.parse(one).bits for note in notes for one in note.options} == {4}

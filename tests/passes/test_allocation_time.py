"""Time in the allocation: bounds that are kept, and bounds that contradict each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from mpqc.backend.onnxruntime.capabilities import load
from mpqc.backend.onnxruntime.costs.tables import find_table
from mpqc.ir import BitAllocation, InfeasibleBudget, UsageError, need_note, quantizable
from mpqc.ir.costs import CONCAT, FLOAT, ORDER, SELECT, Cost, CostTable
from mpqc.passes.calibrate.calibrate import Calibrate
from mpqc.passes.engine.numerics.joint_knapsack import Joint
from mpqc.passes.engine.numerics.knapsack import Item, Toll, allocate, smallest_bytes
from mpqc.passes.engine.pipeline.base import PassContext

from .swept import CALIBRATE, context, language, run, sentences

pytestmark = pytest.mark.usefixtures("one_thread")
SHIPPED = find_table("avx512-vnni", 1, None)
READY = f"{CALIBRATE},annotate-sensitivity{{groups=[64]}}"


def costs_of(call: float, weights: dict[str, float]) -> CostTable:
    """A table where the model of these tests, small as it is, has something to choose."""
    free = Cost((call,), (0.0,), (0.0,), (0.0,), (0.0,))
    products = {
        name: dataclasses.replace(free, weight=(weight,)) for name, weight in weights.items()
    }
    moves = {name: dataclasses.replace(free, row=(1.0,)) for name in (CONCAT, ORDER, SELECT)}
    return dataclasses.replace(
        SHIPPED, name="made up", tokens=(1,), operations={**products, **moves}
    )


COSTS = costs_of(1e-5, {FLOAT: 15.0, "2g64": 10.0, "4g64": 20.0, "8g64": 25.0})


@pytest.fixture
def work(tmp_path: Path) -> PassContext:
    return dataclasses.replace(
        context(tmp_path, sentences()), capabilities=load("ort-cpu"), costs=COSTS
    )


def allocated(work: PassContext, options: str) -> tuple[float, float, int]:
    """Returns the predicted loss, the ratio of times, and the number of row classes."""
    model: ir.Model = run(f"{READY},allocate-bits{{budget=3.4, {options}}}", language(), work)
    notes = [need_note(unit.notes, BitAllocation) for unit in quantizable(model)]
    times = work.report["allocate-bits"]["time"]["products"]["run"]
    ratio = times["microseconds"] / times["original"]
    return sum(note.loss for note in notes), ratio, sum(len(note.options) for note in notes)


def test_less_time_costs_loss_and_saves_classes(work: PassContext) -> None:
    free, ratio, classes = allocated(work, "latency=1000")
    middle = ratio * 0.9
    slower, kept, _ = allocated(work, f"latency={middle}")
    assert kept <= middle + 1e-9
    assert slower > free
    worst, least, fewer = allocated(work, f"aim=latency, max_loss={free * 2}")
    assert worst <= free * 2
    assert least < ratio
    assert fewer < classes


def test_by_default_time_is_worth_as_much_as_loss(work: PassContext) -> None:
    free, ratio, _ = allocated(work, "latency=1000")
    loss, less, _ = allocated(work, "fold=false")
    assert ratio > 1 > 0.95 > less / ratio
    assert loss / free - 1 <= 2 * (1 - less / ratio)


def test_a_table_decides_and_is_named(work: PassContext) -> None:
    allocated(work, "latency=1000")
    assert work.report["allocate-bits"]["time"]["costs"] == "made up"
    other = dataclasses.replace(work, costs=find_table("avx2", 1, None), report={})
    _, ratio, _ = allocated(other, "latency=1000")
    assert other.report["allocate-bits"]["time"]["costs"] == "avx2"
    assert ratio > 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("latency=0.01", "at least .* times the original's time, not 0.01"),
        ("max_loss=1e-9", "at least .* is lost, as predicted, not 1e-09"),
        ("latency=1000, max_loss=1e-9", "these bytes and this time"),
        ("aim=latency, max_loss=1e-9", "is lost, as predicted"),
        ("aim=latency, max_loss=1000, latency=0.01", "not 0.01"),
    ],
)
def test_bounds_that_contradict_each_other(options: str, why: str, work: PassContext) -> None:
    with pytest.raises(InfeasibleBudget, match=why) as caught:
        allocated(work, options)
    assert "ask for --" in str(caught.value.hint)


def test_a_hopeless_bound_is_refused_before_anything_is_calibrated(
    work: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = [{**feed, "past": np.zeros((1, 0, 4))} for feed in sentences().feeds]
    samples = dataclasses.replace(sentences(), feeds=cached)
    own = dataclasses.replace(work, calibration=samples, report={})
    monkeypatch.setattr(Calibrate, "run", lambda *given: pytest.fail("it was calibrated"))
    with pytest.raises(InfeasibleBudget, match=r"with any options, not 0\.01"):
        run(f"{READY},allocate-bits{{budget=3.4, latency=0.01}}", language(), own)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("latency=0.0", "latency must be above 0"),
        ("max_loss=-1.0", "max_loss must be above 0"),
        ("aim=latency", "costs any quality"),
        ("aim=speed", "no aim 'speed'"),
        ("method=uniform, latency=1.0", "no use for latency"),
    ],
)
def test_impossible_options(options: str, why: str, work: PassContext) -> None:
    with pytest.raises(UsageError, match=why):
        allocated(work, options)


def test_without_a_table_nothing_changes(work: PassContext) -> None:
    def notes(costs: CostTable | None, options: str) -> list[str]:
        own = dataclasses.replace(work, costs=costs, report={})
        model = run(f"{READY},allocate-bits{{budget=4.5{options}}}", language(), own)
        return [str(need_note(unit.notes, BitAllocation)) for unit in quantizable(model)]

    assert notes(None, "") == notes(COSTS, ", latency=1000")


def tolled(seed: int, rows: int, tile: int) -> Item:
    rng = np.random.default_rng(seed)
    loss = 10.0 ** rng.uniform(-3, 0, (rows, 1)) * np.array([1.0, 0.3, 0.05])
    toll = Toll(
        row=rng.uniform(0, 0.02, 3), classes=rng.uniform(0, 0.3, 3), mixing=0.1, ordering=0.2
    )
    return Item(loss.astype(np.float32), np.array([18, 34, 66]), 10, tile, toll=toll)


def cost_of(items: list[Item], options: list[np.ndarray]) -> float:
    return sum(
        float(one.loss[np.arange(len(at)), at].sum(dtype=np.float64) + one.tolls.row[at].sum())
        + one.tolls.shared(np.unique(at))
        for one, at in zip(items, options, strict=True)
    )


def oracle(items: list[Item], budget: int) -> float:
    """Returns the least loss and toll: integer programming, with a variable for each class."""
    costs, sizes, rows, links = [], [], [], []
    count = sum(one.loss.size + 4 for one in items)
    start = 0
    for one in items:
        n, k = one.loss.shape
        classes = start + n * k
        costs += [*(one.loss.astype(float) + one.tolls.row).ravel(), *one.tolls.classes]
        costs.append(one.tolls.mixing + one.tolls.ordering)
        sizes += [*np.tile(one.row_bytes, n), *[0] * k, one.mixing_bytes]
        for row in range(n):
            pick = np.zeros(count)
            pick[start + row * k : start + (row + 1) * k] = 1
            rows.append(pick)
            for option in range(k):  # a row needs its class
                link = np.zeros(count)
                link[start + row * k + option], link[classes + option] = 1, -1
                links.append(link)
        mixed = np.zeros(count)  # more than one class is mixed
        mixed[classes : classes + k], mixed[classes + k] = 1, -(k - 1)
        links.append(np.array(mixed))
        start += n * k + 4
    above = np.zeros(len(links))
    above[[at for at, link in enumerate(links) if link.sum() == 1]] = 1
    found = milp(
        np.array(costs),
        constraints=[
            LinearConstraint(np.array(rows), 1, 1),
            LinearConstraint(np.array(links), -np.inf, above),
            LinearConstraint(np.array(sizes), 0, budget),
        ],
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
    )
    assert found.success
    return float(found.fun)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 0.95))
def test_tolls_against_integer_programming(seed: int, share: float) -> None:
    items = [tolled(seed, 8, 1), tolled(seed + 1, 6, 1)]
    least = smallest_bytes(items)
    budget = least + int((14 * 66 + 20 - least) * share)
    choices = allocate(items, budget)
    assert choices is not None
    assert sum(choice.bytes for choice in choices) <= budget
    found, best = cost_of(items, [one.option for one in choices]), oracle(items, budget)
    assert best <= found * (1 + 1e-6)
    # A price finds the hull; what the last move misses is a row, or a class.
    gap = max(float(one.loss[:, 0].max() + one.tolls.shared(np.arange(3))) for one in items)
    assert found <= best + gap


def test_an_order_in_common_costs_no_toll() -> None:
    items = [tolled(1, 8, 1), tolled(2, 8, 1)]
    joint = Joint.of(items)
    both = np.array([0, len(joint.path) - 1])
    ends = np.array([0, 2])
    expected = sum(one.tolls.shared(ends) - one.tolls.ordering for one in items)
    assert joint.item.tolls.shared(both) == pytest.approx(expected)

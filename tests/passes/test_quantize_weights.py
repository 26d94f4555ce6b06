"""Rounded models: what is in the graph is what codes and scales stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import (
    BitAllocation,
    Budgeted,
    Option,
    QuantSpec,
    Unit,
    UsageError,
    annotate,
    need_note,
    note_of,
    quantizable,
)
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.spec import parse_passes
from mpqc.passes.engine.statistics.quadratic import Quadratic

from .rounded import values
from .swept import CALIBRATE, context, language, run, sentences

pytestmark = pytest.mark.usefixtures("one_thread")
READY = f"{CALIBRATE},annotate-sensitivity,allocate-bits{{budget=4.0}}"


@pytest.fixture
def work(tmp_path: Path) -> PassContext:
    return context(tmp_path, sentences(count=10))


def ready(work: PassContext) -> ir.Model:
    return run(READY, language(), work)


def from_codes(unit: Unit, work: PassContext) -> np.ndarray:
    """The matrix that the side store describes, rows in their own order."""
    note = need_note(unit.notes, QuantSpec)
    parts = []
    for at, (text, count) in enumerate(zip(note.options, note.counts, strict=True)):
        option = Option.parse(text)
        codes = work.arrays.get(f"{unit.name}/codes/{at}")
        scales = work.arrays.get(f"{unit.name}/scales/{at}")
        assert codes.shape == (count, unit.shape[1])
        assert codes.dtype == np.int8
        assert scales.dtype == np.float16
        assert codes.min() >= -(1 << (option.bits - 1))
        assert codes.max() < 1 << (option.bits - 1)
        parts.append(values(codes, scales, option))
    stored = np.concatenate(parts)
    name = f"{unit.name}/order"
    if name in work.arrays:
        stored = stored[np.argsort(work.arrays.get(name))]
    return stored


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_graph_holds_what_the_codes_stand_for(rounding: str, work: PassContext) -> None:
    model = ready(work)
    before = {unit.name: unit.matrix() for unit in quantizable(model)}
    assert any(f"{name}/order" in work.arrays for name in before), "no unit has two options"
    run(f"quantize-weights{{rounding={rounding}}}", model, work)
    for unit in quantizable(model):
        note = need_note(unit.notes, QuantSpec)
        allocation = need_note(unit.notes, BitAllocation)
        assert (note.options, note.counts) == (allocation.options, allocation.counts)
        assert note.rounding == rounding
        np.testing.assert_array_equal(unit.matrix(), from_codes(unit, work))
        assert not np.array_equal(unit.matrix(), before[unit.name])


def losses(work: PassContext, options: str) -> dict[str, float]:
    model = run(f"quantize-weights{{{options}}}", ready(work), work)
    notes = [need_note(unit.notes, BitAllocation) for unit in quantizable(model)]
    return {note.unit: note.loss for note in notes}


def test_gptq_beats_nearest_and_refinement_beats_gptq(work: PassContext) -> None:
    nearest = losses(work, "rounding=nearest")
    plain = losses(work, "refinements=0")
    refined = losses(work, "refinements=3")
    assert sum(plain.values()) < sum(nearest.values())
    assert sum(refined.values()) < sum(plain.values())


def test_losses_are_those_of_what_is_stored(work: PassContext) -> None:
    model = ready(work)
    before = {unit.name: torch.from_numpy(unit.matrix()) for unit in quantizable(model)}
    run("quantize-weights", model, work)
    total = 0.0
    for unit in quantizable(model):
        quadratic = Quadratic.of(unit, work.arrays)
        loss = quadratic.loss(before[unit.name], torch.from_numpy(unit.matrix()))
        note = need_note(unit.notes, BitAllocation)
        assert note.loss == pytest.approx(float(loss.sum()), rel=1e-4)
        total += note.loss
    # The kernels of this table compute in float: there is nothing to add.
    assert need_note(model, Budgeted).loss == pytest.approx(total)
    assert work.report["quantize-weights"]["activation_loss"] == 0.0


def test_units_without_an_allocation_stay_as_they_are(work: PassContext) -> None:
    from mpqc.ir import drop_note

    model = ready(work)
    (head,) = (unit for unit in quantizable(model) if unit.name == "head")
    before = head.matrix()
    drop_note(head.notes, BitAllocation)
    run("quantize-weights", model, work)
    np.testing.assert_array_equal(head.matrix(), before)
    assert note_of(head.notes, QuantSpec) is None


def test_rounding_repeats(work: PassContext) -> None:
    first, second = (run("quantize-weights", ready(work), work) for _ in range(2))
    for one, other in zip(quantizable(first), quantizable(second), strict=True):
        np.testing.assert_array_equal(one.matrix(), other.matrix())


def test_eight_bits_lose_next_to_nothing(work: PassContext) -> None:
    model = ready(work)
    for unit in quantizable(model):
        rows = unit.shape[0]
        annotate(unit.notes, BitAllocation(unit.name, ("8g64",), (rows,), 0.0))
        work.arrays.discard(f"{unit.name}/order")
    before = {unit.name: unit.matrix() for unit in quantizable(model)}
    run("quantize-weights", model, work)
    for unit in quantizable(model):
        error = np.linalg.norm(unit.matrix() - before[unit.name])
        assert error < 0.01 * np.linalg.norm(before[unit.name])


@pytest.mark.parametrize("options", ["refinements=-1", "rounding=nearest, refinements=1"])
def test_refinements_that_would_be_ignored(options: str) -> None:
    with pytest.raises(UsageError, match="refine"):
        parse_passes(f"quantize-weights{{{options}}}")


def test_unknown_rounding() -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes("quantize-weights{rounding=nearst}")
    assert "nearest" in caught.value.hint

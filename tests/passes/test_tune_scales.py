"""Scales move together, for the better, and nothing else moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import (
    Calibration,
    Option,
    QuantSpec,
    UsageError,
    need_note,
    quantizable,
    write_model,
)
from mpqc.ir.analysis.blocks import blocks_of
from mpqc.passes.engine.execution.executor import BlockRunner, Weights
from mpqc.passes.engine.execution.samples import Samples
from mpqc.passes.engine.numerics.divergence_gradient import divergence
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.tune_scales.scales import TunedScales

from .swept import CALIBRATE, context, language, run, sentences, vector, vectors

pytestmark = pytest.mark.usefixtures("one_thread")
ROUNDED = f"{CALIBRATE},annotate-sensitivity,allocate-bits{{budget=3.5}},quantize-weights"


def with_held_out(samples: Calibration) -> Calibration:
    return replace(samples, held_out=4)


@pytest.fixture
def work(tmp_path: Path) -> PassContext:
    return rounding(tmp_path, language(), with_held_out(sentences(count=24)))


def rounding(folder: Path, model: ir.Model, samples: Calibration) -> PassContext:
    folder.mkdir(parents=True, exist_ok=True)
    write_model(model, folder / "original.onnx")
    made = context(folder, samples)
    made.original = folder / "original.onnx"
    return made


def codes_of(model: ir.Model, work: PassContext) -> dict[str, np.ndarray]:
    return {
        f"{unit.name}/{at}": np.array(work.arrays.get(f"{unit.name}/codes/{at}"))
        for unit in quantizable(model)
        for at in range(len(need_note(unit.notes, QuantSpec).options))
    }


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {unit.name: unit.matrix().copy() for unit in quantizable(model)}


def test_divergence_falls_and_codes_stay(work: PassContext) -> None:
    model = run(ROUNDED, language(), work)
    codes, weights = codes_of(model, work), weights_of(model)
    run("tune-scales{rate=0.01, samples=0}", model, work)
    facts = work.report["tune-scales"]
    assert facts["kept"]
    assert facts["samples"] == 20
    assert facts["after"] < 0.98 * facts["before"]
    after = codes_of(model, work)
    assert codes.keys() == after.keys()
    assert all(np.array_equal(codes[name], after[name]) for name in codes)
    changed = weights_of(model)
    assert all(not np.array_equal(weights[name], changed[name]) for name in weights)


def test_graph_holds_what_codes_and_scales_stand_for(work: PassContext) -> None:
    model = run(f"{ROUNDED},tune-scales{{rate=0.01}}", language(), work)
    for unit in quantizable(model):
        stored = TunedScales(unit, work.arrays).weight().detach().numpy()
        assert np.array_equal(unit.tensor.numpy(), stored)


def test_scales_of_more_levels_move_less(work: PassContext) -> None:
    model = run(ROUNDED, language(), work)
    widths = set()
    for unit in quantizable(model):
        options = [Option.parse(text) for text in need_note(unit.notes, QuantSpec).options]
        names = [f"{unit.name}/scales/{at}" for at in range(len(options))]
        before = [np.array(work.arrays.get(name), np.float32) for name in names]
        tuned = TunedScales(unit, work.arrays)
        with torch.no_grad():
            for one in tuned.parameters():
                one.fill_(0.5)
        tuned.round_scales()
        tuned.store()
        for option, name, old in zip(options, names, before, strict=True):
            ratio = work.arrays.get(name).astype(np.float32) / old
            np.testing.assert_allclose(ratio, 1 + 0.5 * 2 ** (2 - option.bits), rtol=1e-3)
            widths.add(option.bits)
    assert len(widths) > 1


def test_what_is_judged_is_what_is_stored(work: PassContext) -> None:
    rounded = f"{CALIBRATE},annotate-sensitivity,allocate-bits{{budget=8.5}},quantize-weights"
    model = run(f"{rounded},tune-scales{{rate=0.01}}", language(), work)
    judged = work.report["tune-scales"]
    assert judged["kept"]
    run("tune-scales{rate=0.00001}", model, work)
    assert work.report["tune-scales"]["before"] == pytest.approx(judged["after"], rel=1e-6)


def test_result_that_is_no_better_is_dropped(work: PassContext) -> None:
    model = run(ROUNDED, language(), work)
    weights = weights_of(model)
    run("tune-scales{rate=0.9}", model, work)
    facts = work.report["tune-scales"]
    assert not facts["kept"]
    assert facts["after"] >= facts["before"]
    changed = weights_of(model)
    assert all(np.array_equal(weights[name], changed[name]) for name in weights)


def test_gains_too_small_to_be_more_than_chance_are_dropped(work: PassContext) -> None:
    model = run(ROUNDED, language(), work)
    weights = weights_of(model)
    run("tune-scales{rate=0.0003}", model, work)
    facts = work.report["tune-scales"]
    assert 0.97 * facts["before"] < facts["after"] < facts["before"]
    assert not facts["kept"]
    changed = weights_of(model)
    assert all(np.array_equal(weights[name], changed[name]) for name in weights)


def test_other_outputs_than_logits_are_tuned_too(tmp_path: Path) -> None:
    work = rounding(tmp_path, vector(), with_held_out(vectors()))
    run(f"{ROUNDED},tune-scales{{rate=0.005}}", vector(), work)
    facts = work.report["tune-scales"]
    assert facts["after"] < facts["before"]


def test_gradients_are_those_of_the_whole_model(work: PassContext) -> None:
    model = run(ROUNDED, language(), work)
    tuned = [TunedScales(unit, work.arrays) for unit in quantizable(model)]
    weights: Weights = {one.unit.weight: one.weight for one in tuned}
    runner = BlockRunner(work.runner, blocks_of(model), model.graph.outputs)
    assert len(runner.blocks) > 1
    assert work.calibration is not None
    feeds = work.calibration.feeds[0]
    (sample,) = Samples([feeds])
    runner.run(sample, weights)
    shape = sample["logits"].shape
    exact = {"logits": np.random.default_rng(0).standard_normal(shape)}
    _, gradients = divergence("logits", exact, {"logits": sample["logits"]})
    sample.gradients.update(gradients)
    for block in reversed(runner.blocks):
        runner.backward(sample, block, weights=weights)
    assert not sample.values
    assert not sample.gradients
    found = [one.grad for unit in tuned for one in unit.parameters()]

    inputs = [*model.graph.inputs, *(unit.unit.weight for unit in tuned)]
    whole = work.runner.segment(list(model.graph), inputs, model.graph.outputs)
    fresh = [TunedScales(unit, work.arrays) for unit in quantizable(model)]
    (logits,) = whole(torch.from_numpy(feeds["ids"]), *(unit.weight() for unit in fresh))
    _, gradients = divergence("logits", exact, {"logits": logits})
    logits.backward(gradients["logits"])
    expected = [one.grad for unit in fresh for one in unit.parameters()]
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["logits", "regression"])
def test_padding_asks_for_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    exact, other = rng.standard_normal((2, 1, 5, 7)).astype(np.float32)
    real = np.array([[True, True, False, True, False]])
    given = {"y": torch.from_numpy(other)}
    loss, gradients = divergence(kind, {"y": exact}, given, lambda shape: real.reshape(shape))
    some = {"y": torch.from_numpy(other[real][None])}
    wanted, parts = divergence(kind, {"y": exact[real][None]}, some)
    assert loss == pytest.approx(wanted)
    torch.testing.assert_close(gradients["y"][:, real[0]], parts["y"])
    assert not gradients["y"][:, ~real[0]].any()
    nothing = divergence(kind, {"y": exact}, given, lambda shape: np.zeros(shape, bool))
    assert nothing[0] == 0
    assert not nothing[1]["y"].any()


def test_refuses_what_cannot_be() -> None:
    from mpqc.passes.engine.pipeline.spec import parse_passes

    for text in ("tune-scales{rate=0.0}", "tune-scales{samples=-1}", "tune-scales{rate=2.0}"):
        with pytest.raises(UsageError, match="tune-scales cannot take"):
            parse_passes(text)


def test_nothing_in_codes_leaves_nothing_to_tune(work: PassContext) -> None:
    halves = "annotate-sensitivity{bits=[16]},allocate-bits{budget=16.5},quantize-weights"
    run(f"{CALIBRATE},{halves},tune-scales", language(), work)
    assert work.report["tune-scales"] == {"kept": False, "why": "no unit is stored in codes"}


def test_nobody_judges_by_what_was_fitted_to(tmp_path: Path) -> None:
    work = rounding(tmp_path, language(), with_held_out(sentences(count=1)))
    model = run(ROUNDED, language(), work)
    weights = weights_of(model)
    run("tune-scales", model, work)
    assert work.report["tune-scales"]["why"] == "no held-out sample is there to judge them by"
    changed = weights_of(model)
    assert all(np.array_equal(weights[name], changed[name]) for name in weights)


def test_needs_the_original(tmp_path: Path) -> None:
    work = context(tmp_path, sentences(count=4))
    model = run(ROUNDED, language(), work)
    with pytest.raises(UsageError, match="the original model"):
        run("tune-scales", model, work)

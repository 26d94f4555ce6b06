"""attention-hessians and sequential rounding, run by the real runner on a small decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import (
    AttentionUnits,
    BitAllocation,
    LocalHessian,
    Option,
    TensorStats,
    Unit,
    UsageError,
    blocks_of,
    find_units,
    need_note,
    note_of,
    quantizable,
)
from mpqc.ir.analysis.blocks import Block
from mpqc.passes.engine.execution.executor import BlockRunner
from mpqc.passes.engine.execution.samples import Samples, Values
from mpqc.passes.engine.numerics.factor import factorize
from mpqc.passes.engine.numerics.gptq import round_rows
from mpqc.passes.engine.numerics.shrinkage import shrunk
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.statistics.local_hessians import LocalHessians
from mpqc.passes.engine.statistics.quadratic import DAMPING, Quadratic
from mpqc.passes.engine.statistics.reweighted import WeightedHessians
from mpqc.passes.engine.statistics.squares import read_square
from mpqc.passes.quantize_weights import QuantizeWeights

from . import swept
from .attending import language
from .rounded import parse
from .swept import CALIBRATE, context, run, sentences

pytestmark = pytest.mark.usefixtures("one_thread")
LOOKED = f"{CALIBRATE},attention-hessians{{probes=2}}"
ROUND = "annotate-sensitivity,allocate-bits{budget=4.0, granularity=unit},quantize-weights"


def looked(folder: Path) -> tuple[ir.Model, PassContext]:
    model, work = language(), context(folder, sentences(4, 12))
    return run(LOOKED, model, work), work


def units(model: ir.Model) -> dict[str, LocalHessian | None]:
    return {unit.name: note_of(unit.notes, LocalHessian) for unit in find_units(model)}


def test_notes_name_units_and_roles(tmp_path: Path) -> None:
    model, work = looked(tmp_path)
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    note = need_note(softmax, AttentionUnits)
    assert (note.queries, note.keys, note.values, note.output) == ("wq", "wk", "wv", "wo")
    assert (note.heads, note.kv_heads, note.causal) == (4, 2, True)
    found = units(model)
    shown = {name: (note.roles, note.count) for name, note in found.items() if note}
    assert shown == {
        "wq": (("queries",), 4),
        "wk": (("keys",), 2),
        "wv": (("values",), 2),
        "wo": (("output",), 1),
        "up": (("product",), 1),
        "down": (("product",), 1),
        "head": (("product",), 1),
        "table": (("lookup",), 0),
    }
    assert all(note.trace > 0 for note in found.values() if note)
    assert work.report["attention-hessians"] == {"attentions": 1, "refused": {}}


def test_a_second_run_reads_what_the_first_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = looked(tmp_path)
    monkeypatch.setattr(LocalHessians, "begin", None)
    second, _ = looked(tmp_path)
    assert units(first) == units(second)


def test_every_row_rounds_against_its_own_head(tmp_path: Path) -> None:
    model, work = looked(tmp_path)
    unit = next(one for one in quantizable(model) if one.name == "wv")
    matrices = torch.from_numpy(np.array(work.arrays.get("wv/0/local")))
    tokens = need_note(unit.notes, TensorStats).tokens
    run("annotate-sensitivity,allocate-bits{budget=3.0, granularity=unit}", model, work)
    before = torch.from_numpy(unit.matrix())
    run("quantize-weights", model, work)
    after = torch.from_numpy(unit.matrix())
    (text,) = need_note(unit.notes, BitAllocation).options
    option = Option.parse(text)
    for head, rows in enumerate((slice(0, 32), slice(32, 64))):
        factor = factorize(shrunk(matrices[head], tokens), DAMPING)
        wanted = round_rows(before[rows], option.bits, option.group, factor, refinements=3)
        torch.testing.assert_close(after[rows], wanted.dequantize(option.group))


def test_predictions_stay_those_of_calibration(tmp_path: Path) -> None:
    model, work = looked(tmp_path)
    unit = next(one for one in quantizable(model) if one.name == "wq")
    quadratic = Quadratic.of(unit, work.arrays)
    weight = torch.from_numpy(unit.matrix())
    hessian = torch.from_numpy(read_square(work.arrays, "wq/0/hessian"))
    hessian = shrunk(hessian, need_note(unit.notes, TensorStats).tokens)
    rows = torch.from_numpy(np.array(work.arrays.get("wq/0/rows")))
    wanted = 0.5 * rows * ((weight @ hessian) * weight).sum(1)
    torch.testing.assert_close(quadratic.loss(weight, weight * 0), wanted)
    assert len(quadratic.parts()) == 4


def test_unchanged_blocks_give_what_calibration_gave(tmp_path: Path) -> None:
    """Sequential Hessians of a model in which nothing was rounded are calibration's own."""
    model, work = language(), context(tmp_path, sentences(4, 12))
    run(CALIBRATE, model, work)
    assert work.calibration is not None
    blocks = blocks_of(model)
    gather = WeightedHessians(work.arrays)
    runner = BlockRunner(work.runner, blocks)
    samples = Samples.of(work, work.calibration.training)
    seen = 0
    for block in blocks:
        wanted = gather.begin(block, quantizable(model))
        for values in runner.forward(samples, block, wanted):
            gather.add(values)
        for (name, at), found in gather.end().items():
            exact = torch.from_numpy(read_square(work.arrays, f"{name}/{at}/hessian"))
            torch.testing.assert_close(found.matrices[0], exact, rtol=5e-3, atol=5e-4)
            seen += 1
    assert seen == 7


def error_of(passes: str, folder: Path) -> float:
    """The mean divergence that rounding causes on the samples it was fitted to."""
    model, work = language(), context(folder, sentences(8, 24))
    run(passes.split(",annotate")[0], model, work)
    assert work.calibration is not None
    samples = work.calibration.training

    def logits() -> torch.Tensor:
        nodes, graph = list(model.graph), model.graph
        module = work.runner.segment(nodes, graph.inputs, graph.outputs)
        with torch.no_grad():
            found = [module(torch.from_numpy(np.asarray(feed["ids"])))[0] for feed in samples]
        return torch.cat([one.reshape(-1, one.shape[-1]) for one in found])

    exact = logits()
    run("annotate" + passes.split(",annotate")[1], model, work)
    rounded = logits()
    p, q = exact.log_softmax(1), rounded.log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize(
    ("before", "sequence"),
    [("", "block"), ("", "layer"), (",attention-hessians{probes=2}", "layer")],
)
def test_sequential_rounding_makes_up_for_earlier_blocks(
    before: str, sequence: str, tmp_path: Path
) -> None:
    at_once = error_of(f"{CALIBRATE}{before},{ROUND}{{refinements=0}}", tmp_path / "a")
    in_turn = error_of(
        f"{CALIBRATE}{before},{ROUND}{{refinements=0, sequential={sequence}}}", tmp_path / "b"
    )
    assert in_turn != at_once
    assert in_turn < 1.1 * at_once


def test_the_first_samples_alone_give_what_a_calibration_on_them_gives(tmp_path: Path) -> None:
    def values(count: int, samples: int) -> torch.Tensor:
        work = context(tmp_path / str(count), sentences(count, 12))
        run(f"{CALIBRATE},attention-hessians{{probes=2, samples={samples}}}", language(), work)
        return torch.from_numpy(np.array(work.arrays.get("wv/0/local")))

    assert not torch.equal(values(8, 3), values(8, 0))
    alone = context(tmp_path / "alone", sentences(8, 12))
    assert alone.calibration is not None
    feeds = alone.calibration.first(3)
    cut = replace(alone, calibration=replace(alone.calibration, feeds=feeds, held_out=0))
    run(LOOKED, language(), cut)
    torch.testing.assert_close(
        values(8, 3), torch.from_numpy(np.array(cut.arrays.get("wv/0/local")))
    )


@pytest.mark.parametrize(("samples", "seen"), [(0, 6), (3, 3), (99, 6)])
def test_rounding_in_sequence_looks_at_as_many_samples_as_it_is_told(
    samples: int, seen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, work = language(), context(tmp_path, sentences(8, 12))
    run(f"{CALIBRATE},annotate-sensitivity,allocate-bits{{budget=4.0}}", model, work)
    looked_at: list[int] = []
    begin, add = WeightedHessians.begin, WeightedHessians.add

    def begun(gather: WeightedHessians, block: Block, here: Sequence[Unit]) -> list[ir.Value]:
        looked_at.append(0)
        return begin(gather, block, here)

    def counted(gather: WeightedHessians, values: Values) -> None:
        looked_at[-1] += 1
        add(gather, values)

    monkeypatch.setattr(WeightedHessians, "begin", begun)
    monkeypatch.setattr(WeightedHessians, "add", counted)
    run(f"quantize-weights{{sequential=block, samples={samples}}}", model, work)
    assert looked_at == [seen] * 3


def test_samples_without_a_sequence_are_refused() -> None:
    with pytest.raises(UsageError, match="gathered anew"):
        QuantizeWeights(samples=4)


def test_nothing_to_act_on_is_an_error(tmp_path: Path) -> None:
    work = context(tmp_path, sentences(2, 12))
    with pytest.raises(UsageError, match="no softmax and no fused attention"):
        run(LOOKED, swept.language(), work)


def test_a_softmax_that_is_none_is_named_in_the_error(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 80] y)
        { a = MatMul(x, first)
          [gate] b = Softmax(a)
          y = MatMul(b, second) }"""
    given = swept.vector_weights()
    given.pop("bias")
    model = parse(text, given)
    with pytest.raises(
        UsageError, match="'gate' is not an attention that can be bound: it weighs"
    ):
        run(LOOKED, model, context(tmp_path, swept.vectors(2, 12)))


def test_heads_that_mix_are_refused_with_a_reason(tmp_path: Path) -> None:
    """Values whose channels a constant product mixed are linear, but no heads."""
    model = language()
    reshape = next(node for node in model.graph if node.outputs[0].name == "v4")
    half = ir.node("Split", [reshape.inputs[0]], attributes={"axis": 2}, num_outputs=2)
    half.attributes["num_outputs"] = ir.AttrInt64("num_outputs", 2)
    mixed = ir.node("Add", list(half.outputs))
    double = ir.node("Concat", [mixed.outputs[0], mixed.outputs[0]], attributes={"axis": 2})
    for at, node in enumerate((half, mixed, double)):
        for index, value in enumerate(node.outputs):
            value.name = f"mixed{at}{index}"
        model.graph.insert_before(reshape, node)
    reshape.replace_input_with(0, double.outputs[0])
    with pytest.raises(UsageError, match="channels of its values are mixed with one another"):
        run(LOOKED, model, context(tmp_path, sentences(2, 12)))


@pytest.mark.parametrize("metric", ["trace", "fisher"])
def test_losses_are_not_those_that_another_pipeline_found(metric: str, tmp_path: Path) -> None:
    """Both read one cache, whose key did not tell whether heads had been looked at."""
    judge = f"annotate-sensitivity{{metric={metric}}}"

    def losses(folder: str, passes: str) -> dict[str, np.ndarray]:
        work = context(tmp_path / folder, sentences(count=4))
        model = run(passes, language(), work)
        return {u.name: work.arrays.get(f"{u.name}/loss") for u in quantizable(model)}

    losses("shared", f"{CALIBRATE},{judge}")
    shared = losses("shared", f"{LOOKED},{judge}")
    fresh = losses("fresh", f"{LOOKED},{judge}")
    for name, loss in fresh.items():
        np.testing.assert_array_equal(shared[name], loss)

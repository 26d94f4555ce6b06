"""The executor: blocks of any graph, with any weights, in memory or on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import InternalError, find_units
from mpqc.ir.analysis.blocks import blocks_of
from mpqc.passes.engine.execution import executor
from mpqc.passes.engine.execution.executor import BlockRunner, weight_of
from mpqc.passes.engine.execution.samples import Samples, Values
from mpqc.passes.engine.pipeline.base import PassContext

from .swept import context, language, run, sentences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def work(tmp_path: Path) -> PassContext:
    return context(tmp_path, sentences(count=2, length=8))


def in_blocks(work: PassContext) -> ir.Model:
    return run("normalize,partition-blocks", language(), work)


def feeds(work: PassContext) -> list[dict[str, np.ndarray]]:
    assert work.calibration is not None
    return [dict(feed) for feed in work.calibration.feeds]


def logits(model: ir.Model, samples: Samples, work: PassContext) -> list[Values]:
    runner = BlockRunner(work.runner, blocks_of(model))
    found: list[Values] = []
    for block in runner.blocks:
        wanted = model.graph.outputs if block is runner.blocks[-1] else ()
        found = list(runner.forward(samples, block, wanted))
    return found


def test_boundaries_on_disk_change_nothing_and_none_is_left(
    work: PassContext, tmp_path: Path
) -> None:
    model = in_blocks(work)
    for one, other in zip(
        logits(model, Samples(feeds(work)), work),
        logits(model, Samples(feeds(work), folder=tmp_path / "disk"), work),
        strict=True,
    ):
        assert torch.equal(one["logits"], other["logits"])
    assert [path for path in (tmp_path / "disk").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("room", [1 << 30, 20_000, 0])
def test_what_a_step_keeps_changes_no_gradient(work: PassContext, room: int) -> None:
    model = in_blocks(work)
    runner = BlockRunner(work.runner, blocks_of(model), model.graph.outputs)
    weights = {
        unit.weight: torch.from_numpy(unit.matrix().T.copy()).requires_grad_()
        for unit in find_units(model)
        if unit.name in ("up1", "down2")
    }

    def slopes(kept: bool) -> tuple[int, dict[str, torch.Tensor]]:
        (sample,) = Samples(feeds(work)[:1])
        passages = {}
        if kept:
            passages = runner.record(sample, weights, room)
        else:
            runner.run(sample, weights)
        count, found = len(passages), {}
        last = sample["logits"]
        sample.gradients["logits"] = torch.linspace(-1, 1, last.numel()).reshape(last.shape)
        for block in reversed(runner.blocks):
            _, slope = runner.backward(
                sample, block, weights=weights, passage=passages.pop(block, None)
            )
            found.update({name: one.clone() for name, one in slope.items()})
        return count, found

    count, found = slopes(kept=True)
    _, wanted = slopes(kept=False)
    assert found.keys() == wanted.keys() >= {str(value.name) for value in weights}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    everything = sum(bool(runner.handed_on(block)) for block in runner.blocks)
    assert count == everything if room == 1 << 30 else (count < everything)
    assert count > 0 or room == 0


def test_a_block_of_two_graphs_runs_on_the_same_inputs(work: PassContext) -> None:
    """How the graphs before and after a pass are compared."""
    before, after = in_blocks(work), in_blocks(work)
    unit = next(one for one in find_units(after) if one.name == "up2")
    unit.replace(unit.matrix() * 2)
    samples, differing = Samples(feeds(work)), []
    runners = [BlockRunner(work.runner, blocks_of(model)) for model in (before, after)]
    for one, other in zip(runners[0].blocks, runners[1].blocks, strict=True):
        changed = list(runners[1].forward(samples, other, other.outputs, go_on=False))
        exact = list(runners[0].forward(samples, one, one.outputs))
        names = [str(value.name) for value in one.outputs]
        if not all(
            torch.equal(x[name], y[name])
            for x, y in zip(exact, changed, strict=True)
            for name in names
        ):
            differing.append(one.index)
    (place,) = {b.index for b in blocks_of(after) for u in unit.uses if u.node in b.nodes}
    assert differing == [place]


def test_weights_from_outside_are_those_of_a_changed_graph(work: PassContext) -> None:
    model = in_blocks(work)
    runner = BlockRunner(work.runner, blocks_of(model), model.graph.outputs)
    for unit in find_units(model):
        (sample,) = Samples(feeds(work)[:1])
        runner.run(sample, {unit.weight: weight_of(unit, unit.matrix() * 0.5)})
        changed = in_blocks(work)
        other = next(one for one in find_units(changed) if one.name == unit.name)
        other.replace(other.matrix() * 0.5)
        (wanted,) = logits(changed, Samples(feeds(work)[:1]), work)
        assert torch.equal(sample["logits"], wanted["logits"]), unit.name


def test_a_block_before_its_inputs_is_our_bug(work: PassContext) -> None:
    runner = BlockRunner(work.runner, blocks_of(in_blocks(work)))
    with pytest.raises(InternalError, match="before any has made it"):
        list(runner.forward(Samples(feeds(work)), runner.blocks[1]))


def test_blocks_leave_a_device_that_runs_short_of_memory(
    work: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earliest first, and never the one that has just run."""
    model = in_blocks(work)
    runner = BlockRunner(work.runner, blocks_of(model))
    (sample, _) = Samples(feeds(work))
    runner.run(sample)
    lowered = list(runner._lowered)
    assert len(lowered) > 1
    monkeypatch.setattr(executor, "free_bytes", lambda device: (1, 10))
    runner.run(sample)
    assert list(runner._lowered) == lowered[-1:]
    monkeypatch.setattr(executor, "free_bytes", lambda device: (9, 10))
    runner.run(sample)
    assert len(runner._lowered) == len(lowered)

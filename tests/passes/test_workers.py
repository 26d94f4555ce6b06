"""Work in other processes gives the bytes that this one would make; weights stay in files."""

from __future__ import annotations

import dataclasses
import importlib.util
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpqc.ir import (
    ArrayStore,
    InputError,
    MachineError,
    UsageError,
    listing,
    quantizable,
    read_model,
    write_model,
)
from mpqc.ir.sealed_file import write_sealed
from mpqc.passes.engine.execution import ray_workers
from mpqc.passes.engine.execution.handover import Handover, hand_over, taken_up
from mpqc.passes.engine.execution.worker_facts import WorkDone, WorkerFacts
from mpqc.passes.engine.pipeline.base import PassContext, State
from mpqc.passes.engine.pipeline.pipeline import Pipeline

from .pretend_workers import PretendCrew, PretendWorkers
from .swept import context, language, sentences

CALIBRATE = "normalize,partition-blocks,calibrate{coupled=true},"
ROUND = "allocate-bits{budget=4.5},fold-permutations,quantize-weights"
WAYS = {
    "plain": CALIBRATE + "annotate-sensitivity," + ROUND,
    "coupled": CALIBRATE + "annotate-sensitivity," + ROUND + "{coupled=true}",
    "kept channels": CALIBRATE + "annotate-sensitivity{keep=[2, 4]}," + ROUND,
    "moved columns": CALIBRATE + "rewrite-crossquant,annotate-sensitivity," + ROUND,
    "no hessians": CALIBRATE + "annotate-sensitivity{metric=weight-error}," + ROUND,
    "trace": CALIBRATE + "annotate-sensitivity{metric=trace}," + ROUND,
    "activations": CALIBRATE + "annotate-sensitivity{metric=activation-norm}," + ROUND,
    "measured": CALIBRATE + "annotate-sensitivity{metric=kl, units=2}," + ROUND,
}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A model whose weights lie beside it."""
    (tmp_path / "model").mkdir()
    write_model(language(), tmp_path / "model" / "model.onnx")
    return tmp_path / "model" / "model.onnx"


def outcome(passes: str, path: Path, work: PassContext) -> tuple[str, dict[str, bytes]]:
    model = read_model(path)
    Pipeline.parse(passes).run(model, work)
    arrays = {name: work.arrays.get(name).tobytes() for name in work.arrays.names()}
    weights = {f"weight {one.name}": one.matrix().tobytes() for one in quantizable(model)}
    return listing(model), arrays | weights


@pytest.mark.parametrize("way", WAYS)
def test_workers_change_no_byte(
    way: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpqc.passes.calibrate.shards.SHARD", 2)
    alone = outcome(WAYS[way], stored, context(tmp_path / "a", sentences(7)))
    for seed, dying in ((1, 0), (2, 3)):
        work = context(tmp_path / f"b{seed}", sentences(7))
        work.workers = workers = PretendWorkers(tmp_path / f"states{seed}", seed, dying)
        assert outcome(WAYS[way], stored, work) == alone
        assert list((tmp_path / f"b{seed}" / "cache").glob("*.unfinished")) == []
        units = [one.name for one in quantizable(read_model(stored))]
        judged_and_rounded = [name for name in workers.names if name in units]
        assert len(judged_and_rounded) >= 2 * len(units)
        swept = [name for name in workers.names if name.startswith("backward")]
        assert len(swept) >= 3 * 4  # shards of 2 samples, blocks


def handed_over(path: Path, tmp_path: Path) -> tuple[Handover, PassContext]:
    work, model = context(tmp_path, sentences()), read_model(path)
    Pipeline.parse("normalize,partition-blocks,calibrate").run(model, work)
    work.arrays.put("up/order", np.arange(3))
    (tmp_path / "state").mkdir()
    made = hand_over(State(model, work), tmp_path / "state", "state")
    return pickle.loads(pickle.dumps(made)), work


def test_weights_stay_where_they_are(stored: Path, tmp_path: Path) -> None:
    made, work = handed_over(stored, tmp_path)
    assert list((tmp_path / "state" / "data").iterdir()) == []
    assert made.weights_of == stored
    state = taken_up(made, "elsewhere")
    for one in quantizable(read_model(stored)):
        assert np.array_equal(state.units[one.name].matrix(), one.matrix())
    arrays = state.context.arrays
    assert list(arrays.names()) == list(work.arrays.names())
    assert arrays.get("up/order").tolist() == [0, 1, 2]


def test_only_computed_weights_are_written(stored: Path, tmp_path: Path) -> None:
    model, work = read_model(stored), context(tmp_path, sentences())
    unit = quantizable(model)[0]
    unit.replace(unit.matrix() * 2)
    (tmp_path / "state").mkdir()
    made = hand_over(State(model, work), tmp_path / "state", "state")
    (written,) = (tmp_path / "state" / "data").iterdir()
    assert written.stat().st_size == 4 * unit.size
    assert np.array_equal(taken_up(made, "here").units[unit.name].matrix(), unit.matrix())


def test_a_worker_that_does_not_see_the_model_says_so(stored: Path, tmp_path: Path) -> None:
    made, _ = handed_over(stored, tmp_path)
    stored.with_name("model.onnx.data").unlink()
    with pytest.raises(MachineError, match=r"worker on node-7: .*model.onnx.data") as caught:
        taken_up(made, "node-7")
    assert "MPQC_CACHE" in caught.value.hint


def test_a_worker_that_does_not_see_the_stats_says_so(stored: Path, tmp_path: Path) -> None:
    made, _ = handed_over(stored, tmp_path)
    gone = max((tmp_path / "cache").glob("*.safetensors"))
    gone.unlink()
    with pytest.raises(MachineError, match=f"worker on node-7: .*{gone.name}"):
        taken_up(made, "node-7")


def test_a_worker_with_other_stats_is_refused(stored: Path, tmp_path: Path) -> None:
    made, _ = handed_over(stored, tmp_path)
    path = max((tmp_path / "cache").glob("*.safetensors"))
    write_sealed(path, path.stem, {"up/0/rows": np.ones(3)}, {})
    with pytest.raises(MachineError, match="is not the same file"):
        taken_up(made, "node-7")


def test_a_worker_with_another_weight_is_refused(stored: Path, tmp_path: Path) -> None:
    work, data = context(tmp_path, sentences()), stored.with_name("model.onnx.data")
    model = read_model(stored)
    Pipeline.parse("normalize,partition-blocks,calibrate").run(model, work)

    class Elsewhere(PretendWorkers):
        """Their copy of the weights differs in one bit."""

        @contextmanager
        def share(self, state: State, what: str) -> Iterator[PretendCrew]:
            content = bytearray(data.read_bytes())
            content[100] ^= 1
            data.rename(data.with_suffix(".before"))
            data.write_bytes(content)
            with super().share(state, what) as crew:
                yield crew

    work.workers = Elsewhere(tmp_path / "states")
    with pytest.raises(MachineError, match="reads another weight"):
        Pipeline.parse("annotate-sensitivity").run(model, work)


@pytest.mark.parametrize("what", ["torch", "numpy", "mpqc", "vector instructions"])
def test_a_worker_that_computes_otherwise_is_refused(
    what: str, stored: Path, tmp_path: Path
) -> None:
    made, _ = handed_over(stored, tmp_path)
    other = dataclasses.replace(made, arithmetic={**made.arithmetic, what: "other"})
    with pytest.raises(MachineError, match=f"worker on node-7 has {what} .* other"):
        taken_up(other, "node-7")


def test_arrays_that_a_file_lacks_are_refused(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.safetensors", "a", {"x": np.ones(3)}, {})
    assert "x" in ArrayStore.over({"x": tmp_path / "a.safetensors"})
    with pytest.raises(InputError, match="has no array 'y'"):
        ArrayStore.over({"y": tmp_path / "a.safetensors"})


@pytest.mark.parametrize("where", ["0", "-1", "1025", "9" * 30, "two", "ray://a:1", "a:b", ""])
def test_what_workers_cannot_be(where: str) -> None:
    with pytest.raises(UsageError, match="workers"), ray_workers.ray_workers(where):
        pass


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "find_spec", lambda name: None)
    with (
        pytest.raises(MachineError, match="needs Ray") as caught,
        ray_workers.ray_workers("2"),
    ):
        pass
    assert "mpqc[ray]" in caught.value.hint


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_an_address_where_nobody_answers_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(MachineError, match=address), ray_workers.ray_workers(address):
        pass


def test_what_workers_did_is_told_by_machine() -> None:
    report: dict[str, Any] = {}
    facts = WorkerFacts()
    for machine, process, seconds in (("b", 1, 1.0), ("a", 1, 2.0), ("b", 2, 0.5)):
        facts.add(WorkDone(None, machine, process, seconds, process << 20))
    facts.report("rounding", report)
    assert [row["machine"] for row in report["workers"]["rounding"]] == ["a", "b"]
    *_, last = facts.lines("rounding")
    assert last == "rounding: b: 2 pieces in 2 processes, 1.5 s, at most 2 MiB each"

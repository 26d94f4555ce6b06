"""What a sweep leaves on disk until it is complete, and how it goes on from there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpqc.ir import (
    CachedFile,
    find_units,
)
from mpqc.ir.analysis.blocks import blocks_of
from mpqc.ir.owned_folder import claim, release
from mpqc.passes.calibrate import Calibrate
from mpqc.passes.calibrate.journal import Journal
from mpqc.passes.calibrate.shards import Shards
from mpqc.passes.calibrate.sweep import Sweep
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.statistics.objective import choose_objective

from .rounded import parse
from .swept import (
    calibrated,
    context,
    language,
    run,
    sentences,
    vectors,
)
from .swept import (
    moment_tensors as moments,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shards_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sentences(count=9)
    whole = moments(calibrated(tmp_path / "whole", language(), samples, coupled="true"))
    monkeypatch.setattr("mpqc.passes.calibrate.shards.SHARD", 2)
    work = calibrated(tmp_path / "shards", language(), samples, coupled="true")
    shards = moments(work)
    assert whole.keys() == shards.keys()
    for name, array in whole.items():
        torch.testing.assert_close(shards[name], array, rtol=1e-3, atol=1e-7, msg=name)
    left = [path for path in tmp_path.rglob("*") if ".unfinished" in str(path)]
    assert left == [], "boundaries were left behind"


def test_boundaries_in_bfloat16_change_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = sentences(count=9)
    exact = moments(calibrated(tmp_path / "exact", language(), samples))
    monkeypatch.setattr("mpqc.passes.calibrate.shards.EXACT_BYTES", 0)
    narrow = moments(calibrated(tmp_path / "narrow", language(), samples))
    differing = [name for name, array in exact.items() if not torch.equal(narrow[name], array)]
    assert "up2/0/hessian" in differing
    for name, array in exact.items():
        error = (narrow[name].float() - array.float()).norm()
        assert float(error) <= 0.15 * float(array.float().norm()), name  # a label may move


@pytest.mark.parametrize("done", range(1, 8))
def test_a_killed_sweep_goes_on_after_the_last_block_that_it_finished(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``done`` files of moments or gradients were written before the end came."""
    monkeypatch.setattr("mpqc.passes.calibrate.shards.SHARD", 2)
    samples = sentences(count=9)
    whole = moments(calibrated(tmp_path / "whole", language(), samples, coupled="true"))
    writes: list[str] = []
    write = CachedFile.write

    def killed(self: CachedFile, *given: Any, **more: Any) -> None:
        if len(writes) == 4 * done:
            raise KeyboardInterrupt
        writes.append(self.path.name)
        write(self, *given, **more)

    with monkeypatch.context() as until:
        until.setattr(CachedFile, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            calibrated(tmp_path / "killed", language(), samples, coupled="true")
    again: list[str] = []

    def counted(self: CachedFile, *given: Any, **more: Any) -> None:
        again.append(self.path.name)
        write(self, *given, **more)

    monkeypatch.setattr(CachedFile, "write", counted)
    work = calibrated(tmp_path / "killed", language(), samples, coupled="true")
    for name, array in moments(work).items():
        torch.testing.assert_close(array, whole[name], rtol=0, atol=0, msg=name)
    finished = set(writes) - {writes[-1]}
    assert len(finished & set(again)) < 4, "at most the shards of one block are run again"
    assert list((tmp_path / "killed" / "cache").glob("*.unfinished")) == []


MASKED = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 64] x, float[n, 64] open) => (float[n, 64] y)
    { mask = Mul(open, smallest)
      a = MatMul(x, first)
      b = Add(a, mask)
      c = Relu(b)
      y = MatMul(c, second) }"""


def test_masks_have_no_part_of_weights(tmp_path: Path) -> None:
    weights: dict[str, np.ndarray] = {
        "smallest": np.array(np.finfo(np.float32).min, np.float32),
        "first": np.eye(64, dtype=np.float32),
        "second": np.eye(64, dtype=np.float32) / 2,
    }
    model, work = parse(MASKED, weights), context(tmp_path, vectors())
    run("normalize,partition-blocks", model, work)
    units, calibration = find_units(model), work.calibration
    assert calibration is not None
    (stats, *_) = Calibrate()._places(model, units, work, calibration)
    objective = choose_objective(model, None, "auto")
    shards = Shards(blocks_of(model), units, objective, calibration, stats, work)
    assert shards._computed_from_weights == {"a", "b", "c", "y"}


def test_only_what_is_named_is_narrowed_and_stays_finite(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "key")
    left = {
        "stream": torch.tensor([1.0009765625, 3.0]),
        "mask": torch.tensor([torch.finfo(torch.float32).min, 0.0]),
        "positions": torch.tensor([513.0]),
    }
    journal.write("forward", 0, 0, [left], narrow={"stream", "mask"})
    (found,) = journal.read("forward", 0, 0)
    assert torch.equal(found["stream"], torch.tensor([1.0, 3.0]))
    assert torch.equal(found["mask"], left["mask"])
    assert torch.equal(found["positions"], left["positions"])


def test_a_second_command_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpqc.passes.calibrate.sweep._LOOK", 0.01)
    whole = moments(calibrated(tmp_path / "alone", language(), sentences()))
    folders: list[Path] = []
    run_alone = Sweep._alone

    @contextmanager
    def noted(self: Sweep) -> Iterator[None]:
        folders.append(self.shards.journal.folder)
        with run_alone(self):
            yield

    monkeypatch.setattr(Sweep, "_alone", noted)
    calibrated(tmp_path / "first", language(), sentences())
    (folder,) = (tmp_path / "both" / "cache" / one.name for one in folders)
    folder.parent.mkdir(parents=True)
    lock = claim(folder)
    assert lock is not None
    results: list[PassContext] = []
    waiting = threading.Thread(
        target=lambda: results.append(calibrated(tmp_path / "both", language(), sentences()))
    )
    waiting.start()
    waiting.join(1.0)
    assert waiting.is_alive()
    release(folder, lock)
    waiting.join(60)
    for name, array in moments(results[0]).items():
        torch.testing.assert_close(array, whole[name], rtol=0, atol=0)


def test_statistics_of_another_kind_of_device_are_others(tmp_path: Path) -> None:
    model, work = language(), context(tmp_path, sentences())
    run("normalize,partition-blocks", model, work)
    units, keys = find_units(model), []
    for device in ("cpu", "cuda:0", "cuda:1"):
        work.device = device
        assert work.calibration is not None
        keys.append(Calibrate()._places(model, units, work, work.calibration)[0].index.key)
    assert keys[0] != keys[1] == keys[2]

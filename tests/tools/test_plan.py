"""``mpqc plan``: what it says of tiny models, what it refuses, and that it writes nothing."""

from __future__ import annotations

import inspect
import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpqc
from mpqc.ir import InfeasibleBudget, InputError, UsageError
from mpqc.passes.engine.pipeline.work import PLAIN_RATES, Kind, Work
from mpqc.tools.cli import main
from mpqc.tools.option_fields import specs
from mpqc.tools.options import CompileOptions, PlanOptions
from mpqc.tools.pipelines import PRESETS
from mpqc.tools.planning import look, room
from mpqc.tools.planning.look import loss_at
from mpqc.tools.planning.page import page

from .tiny_models import language_folder, vector_model

FEW: dict[str, Any] = {"samples": 6, "sequence_length": 32}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes a plain machine's rates, but where a test wants true ones."""
    monkeypatch.setattr(look, "measure", lambda model, context: PLAIN_RATES)


@pytest.fixture
def language(tmp_path: Path) -> Path:
    return language_folder(tmp_path / "language")


def files_in(folder: Path) -> dict[Path, int]:
    return {one: one.stat().st_mtime_ns for one in folder.rglob("*")}


def test_a_plan_has_sizes_and_a_step_for_every_pass(
    language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = files_in(tmp_path)
    found = mpqc.plan(language, budget=4, cache=tmp_path / "cache", **FEW)
    assert files_in(tmp_path) == before  # neither a cache nor anything else
    passes = [one.partition("{")[0] for one in found.pipeline.split(",") if one[:1].isalpha()]
    names = [step.name for step in found.steps]
    assert [name for name in names if name in passes] == names[:-2]
    assert names[-2:] == ["validation", "writing the result"]
    assert found.weights == 256 * 64 * 2 + 64 * 128 * 2
    assert found.asked is not None
    assert found.smallest is not None
    assert found.largest is not None
    assert found.asked.bits == 4
    assert found.smallest.bits < 4 < found.largest.bits
    assert found.smallest.disk < found.asked.disk < found.largest.disk
    assert found.seconds == pytest.approx(sum(step.seconds for step in found.steps))
    assert found.seconds > 0
    assert found.memory == max(step.memory for step in found.steps)
    assert found.kept > 0
    assert found.curve == ()
    assert found.warnings == ()


def test_work_grows_with_samples_and_their_length(language: Path, tmp_path: Path) -> None:
    def sweep(**given: Any) -> float:
        found = mpqc.plan(language, budget=4, preset="fast", cache=tmp_path / "c", **given)
        return next(one.seconds for one in found.steps if one.name == "calibrate")

    small = sweep(samples=6, sequence_length=32)
    assert sweep(samples=18, sequence_length=32) > 1.5 * small
    assert sweep(samples=6, sequence_length=96) > 1.5 * small


def test_a_plan_knows_what_an_earlier_run_left(language: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    given: dict[str, Any] = {"preset": "fast", "cache": cache, **FEW}
    result = mpqc.compile(language, budget=4, output=tmp_path / "out", **given)
    before = files_in(cache)
    found = mpqc.plan(language, budget=4, **given)
    assert files_in(cache) == before
    steps = {one.name: one for one in found.steps}
    assert steps["calibrate"].seconds == steps["annotate-sensitivity"].seconds == 0
    losses = [loss for _, loss in found.curve]
    assert losses == sorted(losses, reverse=True)
    assert result.predicted is not None
    assert found.predicted == pytest.approx(result.predicted, rel=0.2)
    assert any(line.startswith("predicted loss as asked") for line in page(found))
    other = mpqc.plan(language, budget=4, preset="fast", cache=cache, samples=7)
    assert other.curve == ()  # of other samples nothing is known


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_plan(preset: str, language: Path, tmp_path: Path) -> None:
    bound = "file_budget" if PRESETS[preset].file_only else "budget"
    given: dict[str, Any] = {bound: 8, "preset": preset, "cache": tmp_path / "cache", **FEW}
    if preset == "aptq":
        with pytest.raises(UsageError, match="no softmax"):
            mpqc.plan(language, **given)
        return
    found = mpqc.plan(language, **given)
    assert all(step.seconds > 0 for step in found.steps)


def test_other_targets_have_plans(language: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"budget": 8, "preset": "fast", "cache": tmp_path / "c", **FEW}

    def lowering(**more: Any) -> float:
        steps = mpqc.plan(language, target="qdq", **given, **more).steps
        return next(step.seconds for step in steps if step.name == "insert-qdq")

    assert lowering(activations="int8") > lowering()  # which rounds each alone, and looks


def test_other_sources(tmp_path: Path) -> None:
    model = vector_model(tmp_path / "vector.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((6, 64), np.float32))
    found = mpqc.plan(model, budget="40KB", calibration=tmp_path / "x.npz", samples=4)
    assert found.asked is not None
    assert found.asked.disk == pytest.approx(40_000)
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    inputs = (torch.zeros(1, 64),)
    found = mpqc.plan(module, budget=6, example_inputs=inputs, random_calibration=True)
    assert found.model == "Sequential"


def test_bad_input_is_refused(language: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudget, match="the smallest is") as refusal:
        mpqc.plan(language, budget=0.5, **FEW)
    assert refusal.value.smallest is not None
    with pytest.raises(UsageError, match="unknown preset"):
        mpqc.plan(language, budget=4, preset="fats", **FEW)
    with pytest.raises(InputError):
        mpqc.plan(tmp_path / "nothing.onnx", budget=4)
    with pytest.raises(InfeasibleBudget, match="too few"):
        mpqc.plan(language, budget="1KB", **FEW)
    with pytest.raises(TypeError, match="overwrite"):
        mpqc.plan(language, budget=4, overwrite=True)  # type: ignore[call-arg]


def test_the_command_has_the_options_of_compile_that_decide_a_run() -> None:
    taken = inspect.signature(mpqc.plan).parameters
    assert list(taken) == ["model", *specs(PlanOptions)]
    left_out = specs(CompileOptions).keys() - specs(PlanOptions).keys()
    assert left_out == {
        *("output", "overwrite", "as_small_as_possible", "dump_after_each", "stop_after"),
        *("print_after", "time_passes", "no_validate", "accept_loss", "workers"),
    }


def test_the_command_prints_a_page_and_json(
    language: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(language / "none"))
    words = ["plan", str(language), "--budget", "4", "--samples", "6"]
    words += ["--sequence-length", "32"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("49,152 weights")
    for start in ("as asked ", "smallest possible ", "calibrate ", "total "):
        assert sum(line.startswith(start) for line in lines) == 1
    assert "predicted loss: comes with the first compilation on these samples" in lines
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert {"name", "seconds", "memory", "kept", "scratch", "measured"} == set(
        said["steps"][0]
    )
    assert said["rates"].keys() == {kind.value for kind in Kind}
    assert main([*words[:3], "0.1"]) == 5
    assert "the smallest is" in capsys.readouterr().err
    assert not (language / "none").exists()


def free_disk(free: int) -> Callable[[Path], Usage]:
    return lambda place: Usage(free, 0, free)


def test_what_does_not_fit_is_said_with_a_setting_that_would(
    language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"budget": 4, "cache": tmp_path, "samples": 64}
    whole = mpqc.plan(language, **given)
    needed = whole.kept + whole.scratch
    monkeypatch.setattr("shutil.disk_usage", free_disk(int(needed * 0.7)))
    found = mpqc.plan(language, **given)
    assert found.warnings[0].startswith("disk: ")
    assert "--samples " in found.warnings[1]
    # What it names fits, and as much again does not.
    named = int(found.warnings[1].partition("--samples ")[2].split(",")[0])
    assert mpqc.plan(language, **{**given, "samples": named}).warnings == ()
    assert mpqc.plan(language, **{**given, "samples": 2 * named}).warnings != ()
    monkeypatch.setattr("shutil.disk_usage", free_disk(10))
    found = mpqc.plan(language, **given)
    assert found.warnings[1].startswith("neither fewer samples")


def test_too_little_memory_is_said(
    language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 1000)
    found = mpqc.plan(language, budget=4, cache=tmp_path, **FEW)
    assert found.warnings[0].startswith("memory: ")
    assert any(line.startswith("warning: memory: ") for line in page(found))


def test_true_rates_are_positive(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpqc.tools.planning import rates

    monkeypatch.setattr(look, "measure", rates.measure)
    found = mpqc.plan(language, budget=4, preset="fast", **FEW)
    assert all(rate > 0 for rate in found.rates.values())
    own = {Kind.SWEEP, Kind.RUN, Kind.PRODUCT, Kind.COLUMN, Kind.TRIAL, Kind.WRITE}
    assert all(found.rates[kind.value] != PLAIN_RATES[kind] for kind in own)


def test_works_add_up() -> None:
    one = Work({Kind.PRODUCT: 10.0}, held=5, left=2, kept=1, scratch=4)
    two = Work({Kind.PRODUCT: 1.0, Kind.WRITE: 3.0}, held=4, left=1, kept=1, scratch=3)
    both = one + two
    assert both.amounts == {Kind.PRODUCT: 11.0, Kind.WRITE: 3.0}
    assert (both.held, both.left, both.kept, both.scratch) == (6, 3, 2, 4)
    assert one.times(3).amounts == {Kind.PRODUCT: 30.0}
    assert both.seconds({**PLAIN_RATES, Kind.PRODUCT: 11.0, Kind.WRITE: 1.0}) == 4.0


def test_loss_is_read_between_points() -> None:
    curve = ((2.0, 1.0), (4.0, 0.01))
    assert loss_at(curve, 3.0) == pytest.approx(0.505)
    assert loss_at(curve, 5.0) == pytest.approx(0.01)
    assert loss_at(curve, 1.0) is None
    assert loss_at((), 3.0) is None

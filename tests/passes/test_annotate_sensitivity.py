"""What fisher predicts, against what storing one unit at a time really costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from mpqc.ir import Option, Sensitivity, UsageError, need_note, note_of, quantizable
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.spec import parse_passes

from .rounded import noise, parse
from .swept import CALIBRATE, context, language, run, sentences, vector, vectors

pytestmark = pytest.mark.usefixtures("one_thread")


def annotated(
    folder: Path, options: str = "", work: PassContext | None = None
) -> dict[str, Sensitivity]:
    work = work or context(folder, sentences(count=10, length=64))
    model = run(f"{CALIBRATE},annotate-sensitivity{options}", language(), work)
    notes = (note_of(unit.notes, Sensitivity) for unit in quantizable(model))
    return {note.unit: note for note in notes if note is not None}


def test_prediction_ranks_like_the_measurement(tmp_path: Path) -> None:
    predicted = annotated(tmp_path)
    measured = annotated(tmp_path, "{metric=kl, samples=8}")
    assert predicted.keys() == measured.keys()
    pairs = [
        (before, after)
        for name, note in predicted.items()
        for before, after in zip(note.total, measured[name].total, strict=True)
    ]
    assert len(pairs) == 18
    assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.9
    small = [(p, m) for p, m in pairs if 1e-4 < m < 0.1]
    ratios = np.log([p / m for p, m in small])
    assert abs(np.median(ratios)) < np.log(1.6)


def test_rows_sum_to_the_total_and_wider_is_better(tmp_path: Path) -> None:
    work = context(tmp_path, sentences())
    for name, note in annotated(tmp_path, work=work).items():
        loss = work.arrays.get(f"{name}/loss")
        np.testing.assert_allclose(loss.sum(0), note.total, rtol=1e-4)
        assert (loss >= 0).all()
        bits = [Option.parse(text).bits for text in note.options]
        assert bits == [2, 4, 8]
        assert note.total[0] > note.total[1] > note.total[2]


def test_expanding_widths_are_offered_when_asked_for(tmp_path: Path) -> None:
    for note in annotated(tmp_path, "{expand=true}").values():
        assert [Option.parse(text).bits for text in note.options] == [2, 3, 4, 5, 6, 7, 8]
        gptq = list(
            note.total[:-1]
        )  # 8 bits are rounded to nearest, which can be worse than 7
        assert gptq == sorted(gptq, reverse=True)


def test_expanding_widths_that_nothing_can_use_are_refused(tmp_path: Path) -> None:
    work = context(tmp_path, sentences(count=10, length=64))
    work.capabilities = dataclasses.replace(work.capabilities, expanding=())
    with pytest.raises(UsageError, match="no widths that expand at load"):
        annotated(tmp_path, "{expand=true}", work)


def test_kl_measures_evenly_spread_units_only(tmp_path: Path) -> None:
    predicted = annotated(tmp_path)
    some = annotated(tmp_path, "{metric=kl, units=2}")
    changed = [
        name
        for name, note in some.items()
        if not np.allclose(note.total, predicted[name].total)
    ]
    assert changed == ["table", "head"]


def test_second_run_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = annotated(tmp_path)
    from mpqc.passes.annotate_sensitivity import fisher

    def never(*given: Any, **more: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(fisher, "judge_each", never)
    assert annotated(tmp_path) == first
    with pytest.raises(Exception, match="computed again"):
        annotated(tmp_path, "{groups=[32]}")


def test_broken_file_is_made_again(tmp_path: Path) -> None:
    first = annotated(tmp_path)
    smallest = min((tmp_path / "cache").iterdir(), key=lambda path: path.stat().st_size)
    smallest.write_bytes(smallest.read_bytes()[:50])
    assert annotated(tmp_path) == first


def test_groups_are_a_choice(tmp_path: Path) -> None:
    notes = annotated(tmp_path, "{groups=[32, 64]}")
    assert notes["up"].options == ("2g64", "2g32", "4g64", "4g32", "8g64", "8g32")
    totals = dict(zip(notes["up"].options, notes["up"].total, strict=True))
    assert totals["2g32"] < totals["2g64"]


def test_without_a_kernel_a_unit_expands_to_floats(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 72] y)
        { a = MatMul(x, w)
          y = MatMul(a, v) }"""
    model = parse(text, {"w": noise(64, 90), "v": noise(90, 72)})
    run(f"{CALIBRATE},annotate-sensitivity", model, context(tmp_path, vectors()))
    units = {unit.name: unit for unit in quantizable(model)}
    assert need_note(units["v"].notes, Sensitivity).options == (
        "2g90",
        "4g90",
        "8g90",
        "16g90",
    )
    assert note_of(units["w"].notes, Sensitivity) is not None


def test_kl_needs_a_model_that_torch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = context(tmp_path, vectors())
    model = run(CALIBRATE, vector(), work)
    monkeypatch.setattr(
        "mpqc.backend.runner.Runner.unsupported",
        lambda self, nodes: {next(iter(nodes)): "Odd has no lowering"},
    )
    with pytest.raises(UsageError, match="Odd has no lowering") as caught:
        run("annotate-sensitivity{metric=kl}", model, work)
    assert caught.value.hint == "use metric=fisher"


def test_unknown_metric() -> None:
    with pytest.raises(UsageError, match="no metric 'fischer'") as caught:
        parse_passes("annotate-sensitivity{metric=fischer}")
    assert "fisher" in caught.value.hint

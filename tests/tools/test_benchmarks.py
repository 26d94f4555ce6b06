"""The benchmarks, on models that take seconds."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mpqc.backend.onnxruntime.generation import Speed, generation_speed
from mpqc.ir import InputError
from mpqc.tools.benchmarks import speed
from mpqc.tools.benchmarks.__main__ import main

from .tiny_models import language_folder

pytestmark = [pytest.mark.ort, pytest.mark.timeout(120)]
FEW = ["--samples", "2", "--sequence-length", "24"]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model, what to calibrate on and where to write."""
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    language_folder(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Some words to read, and some more of them.\n" * 40)
    model, output = str(tmp_path / "model"), str(tmp_path / "out")
    return [model, "--calibration", str(text), "-o", output, *FEW]


def test_prediction_goes_on_and_reads_a_comparison(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = ["prediction", *words, "--units", "3", "--kl-samples", "1"]
    assert main(prediction) == 0
    shown = capsys.readouterr().out
    assert "| both | 6 |" in shown
    assert "mpqc compare" in shown
    ET.parse(tmp_path / "out" / "prediction.svg")
    point = {"method": "default", "budget": 5.0, "status": "measured"}
    measured = {**point, "predicted": 0.1, "kl": 0.2}
    facts = {"default at 5": measured, "b": {**point, "status": "failed"}}
    content = {"given": {}, "measured": facts}
    (tmp_path / "out" / "compare.json").write_text(json.dumps(content))
    assert main(prediction) == 0
    seen = capsys.readouterr()
    assert "| default at 5 | 0.1000 | 0.2000 | 0.50 |" in seen.out
    assert seen.err == ""  # measured already
    assert main([*prediction, "--samples", "3"]) == 2
    assert "not the same samples" in capsys.readouterr().err


@pytest.mark.slow
def test_compile_cost(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile-cost", *words]) == 0
    shown = capsys.readouterr().out
    for line in ("calibrate", "plain: gptq", "all passes over plain work", "peak memory"):
        assert line in shown


def test_speed_table_compares_medians() -> None:
    found = {
        "original": [Speed(10, 1), Speed(20, 2), Speed(90, 9)],
        "compiled": [Speed(40, 5), Speed(10, 5), Speed(90, 6)],
    }
    table = speed.table(found)
    assert "| generating | 2.0 | 5.0 | 2.50x |" in table
    assert "| reading the prompt | 20.0 | 40.0 | 2.00x |" in table


def test_speed_needs_a_genai_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="genai_config"):
        generation_speed(tmp_path, prompt_tokens=1, new_tokens=1)


@pytest.mark.slow
def test_workers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mpqc[ray]'")
    assert main(["workers", *words, "--budget", "4.5", "--counts", "none", "2"]) == 0
    shown = capsys.readouterr().out
    assert "threads | 2 workers" in shown
    assert "| same bytes as the first | yes | yes |" in shown

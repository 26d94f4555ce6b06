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
from mpqc.tools.benchmarks.chart import Chart
from mpqc.tools.benchmarks.results import Kept

from .tiny_models import language_folder

pytestmark = [pytest.mark.ort, pytest.mark.timeout(120)]
FEW = ["--samples", "2", "--sequence-length", "24"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A model, what to calibrate on and where to write."""
    language_folder(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Some words to read, and some more of them.\n" * 40)
    model, output = str(tmp_path / "model"), str(tmp_path / "out")
    return [model, "--calibration", str(text), "-o", output, *FEW]


def test_curve_goes_on_where_it_was_and_prediction_reads_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--text", str(tmp_path / "text.txt"), "--eval-samples", "1", "--uniform", "4"]
    assert main(["curve", *words, *more, "--budgets", "3"]) == 0
    first = json.loads((tmp_path / "out" / "curve.json").read_text())["measured"]
    assert list(first) == ["3 bits", "uniform 4g64"]
    assert main(["curve", *words, *more, "--budgets", "3", "5"]) == 0
    seen = capsys.readouterr()
    assert "3 bits: measured already" in seen.err
    assert seen.out.count("| 5 bits |") == 1
    again = json.loads((tmp_path / "out" / "curve.json").read_text())["measured"]
    assert {name: again[name] for name in first} == first
    assert again["3 bits"]["bits"] <= 3 < again["uniform 4g64"]["bits"] < 4.5
    ET.parse(tmp_path / "out" / "curve.svg")
    assert not (tmp_path / "out" / "3-bits").exists()

    assert main(["prediction", *words, "--units", "3", "--kl-samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert "| both | 6 |" in shown
    assert "| 5 bits |" in shown
    ET.parse(tmp_path / "out" / "prediction.svg")

    assert main(["curve", *words, *more, "--eval-samples", "2"]) == 2
    assert "other options" in capsys.readouterr().err


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


def test_broken_measurements_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="no measurement"):
        Kept(tmp_path / "x.json")


@pytest.mark.parametrize("log_x", [False, True])
def test_charts_are_svg_whatever_they_show(log_x: bool) -> None:
    chart = Chart("x & y", "<b>", log_x=log_x, joined=("a",), diagonal=True)
    points = [(0.0, 1.0), (2.5, 0.1), (3.0, 1e-6), (4.0, float("nan")), (5.0, 0.0)]
    root = ET.fromstring(chart.draw({"a": points, "b": []}))
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"x & y", "<b>", "a", "b"} <= set(texts)
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == (2 if log_x else 3) + 2  # and two in the legend
    assert chart.draw({"a": []}) == ""
    assert chart.draw({"a": [(1.0, 1.0)]}).startswith("<svg")

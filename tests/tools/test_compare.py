"""mpqc compare on models that take seconds: tables, breaks, failures and bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mpqc.ir import InputError
from mpqc.tools import pipelines
from mpqc.tools.cli import main
from mpqc.tools.comparison import chart
from mpqc.tools.comparison.chart import Chart
from mpqc.tools.comparison.folder import opened
from mpqc.tools.comparison.kept import Kept
from mpqc.tools.comparison.methods import read_methods
from mpqc.tools.comparison.picture import draw
from mpqc.tools.pipelines import Preset

from .tiny_models import WIDTH, language_folder, vector_model

pytestmark = [pytest.mark.ort, pytest.mark.timeout(240)]

Capture = pytest.CaptureFixture[str]
SVG = "{http://www.w3.org/2000/svg}"
PIPELINE = (
    "normalize,partition-blocks,calibrate,annotate-sensitivity,allocate-bits{budget={budget}},"
    "quantize-weights,lower-matmul-nbits"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Everything but methods and budgets, for a model of text."""
    language_folder(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Some words to read, and some more of them.\n" * 40)
    given = ["--text", str(text), "--calibration", str(text), "-o", str(tmp_path / "out")]
    few = ["--samples", "2", "--sequence-length", "24", "--eval-samples", "1"]
    return ["compare", str(tmp_path / "model"), *given, *few]


def stored(output: Path) -> dict[str, Any]:
    content = json.loads((output / "compare.json").read_text())
    measured: dict[str, Any] = content["measured"]
    return measured


def rows(table: str) -> dict[str, dict[str, str]]:
    """Returns the table of results in a report: cells by title, by method and budget."""
    part = next(one for one in table.split("\n\n") if one.startswith("| method |"))
    lines = part.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {
        f"{row[0]} at {row[1]}": dict(zip(cells[0], row, strict=True)) for row in cells[2:]
    }


def recipe(path: Path, **methods: str) -> str:
    lines = [f"{name} = {json.dumps(text)}" for name, text in methods.items()]
    path.write_text("\n".join(["[methods]", *lines]))
    return str(path)


def test_table_json_and_picture_agree(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    output, asked = tmp_path / "out", ["--budgets", "1.5,3", "4", "--file-budgets", "3"]
    asked += ["--kernels", "always"]
    assert main([*words, *asked, "--methods", "default", "--keep"]) == 0
    seen = capsys.readouterr()
    facts, shown = stored(output), rows(seen.out)
    assert (output / "compare.md").read_text() == seen.out
    names = [f"default at {one}" for one in ("1.5", "3", "4", "file 3")]
    assert list(facts) == list(shown) == names
    for name, row in shown.items():
        point = facts[name]
        if point["status"] == "measured":
            assert float(row["KL"]) == pytest.approx(point["kl"], rel=0.005)
            assert row["stored bits"] == f"{point['bits']:.3f}"
            assert row["resident bits"] == f"{point['resident_bits']:.3f}"
            assert row["bytes"] == f"{point['result_bytes']:,}"
            assert point["bits"] <= point["budget"]
            assert point["seconds"] == pytest.approx(sum(point["pass_seconds"].values()))
            assert row["time of a run"] == f"{point['run_time']:.2f}"
            assert row["time of a run, predicted"] == f"{point['run_predicted']:.2f}"
    assert facts["default at 1.5"]["status"] == shown["default at 1.5"]["KL"] == "infeasible"
    assert "the smallest is 2." in facts["default at 1.5"]["reason"]
    assert "default at 1.5: infeasible: 1.5 stored bits" in seen.out
    plain, dense = facts["default at 3"], facts["default at file 3"]
    assert dense["bits"] <= 3 < plain["resident_bits"] < dense["resident_bits"]
    # The sweep ran once, and every point knows what it took.
    assert seen.err.count("calibrating: done") == 1
    assert len({point["sweep_seconds"] for point in facts.values() if "kl" in point}) == 1

    points = ET.parse(output / "compare.svg").getroot().findall(f"{SVG}path/{SVG}title")
    wanted = ["default, file budget: 2.9", "default: 2.9", "default: 3.9"]
    assert all(str(one.text).startswith(two) for one, two in zip(points, wanted, strict=True))

    original, compiled = words[1], str(output / "compiled" / "default-at-3")
    same = ["--sequence-length", "24", "--samples", "1", "--json"]
    assert main(["eval", original, compiled, *words[2:4], *same]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["kl"] == pytest.approx(facts["default at 3"]["kl"])
    assert alone["bits"] == facts["default at 3"]["bits"]
    assert sorted(one.name for one in output.iterdir()) == [
        "compare.json",
        "compare.md",
        "compare.svg",
        "compiled",
    ]


@pytest.mark.slow
@pytest.mark.ci_sample
def test_methods_of_a_file_go_on_where_they_were(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tmp_path / "methods.toml", tmp_path / "out"
    nearest = "default + quantize-weights{rounding=nearest, coupled=false}"
    file = recipe(
        path, nearest=nearest, units=PIPELINE.replace("t}}", "t}, granularity=unit}")
    )
    asked = ["--budgets", "4", "--methods", f"default,{file}", "--json"]
    assert main([*words, *asked]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    points = {one["method"]: one for one in answer["points"]}
    assert points["default"]["kl"] < points["nearest"]["kl"]
    assert "rounding=nearest" in points["nearest"]["pipeline"]
    assert "budget=4.0, granularity=unit" in points["units"]["pipeline"]

    # A failure is a row, the others go on, and the next run tries again.
    from mpqc.passes.quantize_weights import QuantizeWeights

    def broken(*_: object) -> bool:
        raise ZeroDivisionError("oops")

    with monkeypatch.context() as patch:
        patch.setattr(QuantizeWeights, "run", broken)
        assert main([*words, *asked]) == 0  # nothing left to do
        capsys.readouterr()
        recipe(path, nearest=nearest.replace("nearest, coupled=false", "gptq"), units=PIPELINE)
        assert main([*words, "--budgets", "4", "1", "--methods", "default", file]) == 70
    seen = capsys.readouterr()
    assert "default at 4 bits (4 of 6): measured already" in seen.err
    assert "nearest at 4 bits (5 of 6): again, its pipeline is another one" in seen.err
    last = seen.err.splitlines()[-1]
    assert last.startswith("mpqc: 2 of 6 points failed: nearest at 4: ")
    assert last.endswith("ZeroDivisionError: oops")
    assert rows(seen.out)["nearest at 4"]["KL"] == "failed"
    least = rows(seen.out)["default at 4"]["KL"]
    assert float(least) == pytest.approx(points["default"]["kl"], rel=0.005)
    assert f"| default | - | **{least}** |" in seen.out  # the best of a budget is bold
    assert "| nearest | - | - |" in seen.out
    assert "broken" in stored(output)["nearest at 4"]["traceback"]

    assert main([*words, *asked]) == 0
    answer = json.loads(capsys.readouterr().out)
    again = {one["method"]: one for one in answer["points"]}
    assert again["default"] == points["default"]
    assert again["nearest"]["kl"] == pytest.approx(points["default"]["kl"])


def test_methods_that_bound_the_file_alone_are_given_file_budgets(
    words: list[str], tmp_path: Path
) -> None:
    output, changed = (
        tmp_path / "out",
        recipe(tmp_path / "m.toml", other="cmpq-grid + split-outliers{share=0.01}"),
    )
    methods = ["--methods", "uniform", "cmpq-grid", changed]
    assert main([*words, *methods, "--budgets", "7", "--file-budgets", "7"]) == 0
    facts = stored(output)
    names = ["uniform at 7", "cmpq-grid at file 7", "other at file 7", "uniform at file 7"]
    assert list(facts) == names
    assert facts["cmpq-grid at file 7"]["status"] == "measured"


def test_other_conditions_are_refused_and_begin_anew(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    asked, output = ["--budgets", "4", "--methods", "uniform"], tmp_path / "out"
    assert main([*words, *asked]) == 0
    before = (output / "compare.json").read_bytes()
    (tmp_path / "text.txt").write_text("Quite another text, which is as long.\n" * 40)
    assert main([*words, *asked]) == 2
    said = capsys.readouterr().err
    assert "not the same calibration, text" in said
    assert "--overwrite" in said
    assert (output / "compare.json").read_bytes() == before
    assert main([*words, *asked, "--seed", "3", "--overwrite"]) == 0
    given = json.loads((output / "compare.json").read_text())["given"]
    assert given["seed"] == 3
    assert {"mpqc", "torch"} <= given["versions"].keys()
    assert "openvino" not in given["versions"], "installing it would begin everything anew"


def test_a_killed_run_leaves_whole_files(words: list[str], tmp_path: Path) -> None:
    output, asked = tmp_path / "out", ["--methods", "default", "--budgets", "3", "4"]
    command = [sys.executable, "-m", "mpqc.tools.cli", *words, *asked]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("default at 4 bits"):
            run.send_signal(signal.SIGKILL)
            break
    run.stderr.close()
    run.wait()
    first = stored(output)
    assert list(first) == ["default at 3"]
    assert [one for one in output.iterdir() if one.name.startswith(".mpqc-")]
    assert main([*words, *asked]) == 0
    assert stored(output)["default at 3"] == first["default at 3"]
    assert list(stored(output)) == ["default at 3", "default at 4"]
    assert not [one for one in output.iterdir() if one.name.startswith(".")]


def test_interruption_says_how_to_go_on(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpqc.tools.comparison.point.evaluate_on", stop)
    assert main([*words, "--budgets", "4", "--methods", "default"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_models_without_tokens_have_other_figures(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    model = vector_model(tmp_path / "vector.onnx")
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.random.default_rng(0).standard_normal((6, WIDTH), np.float32))
    output = str(tmp_path / "out")
    words = ["compare", str(model), "--text", str(samples), "--calibration", str(samples)]
    assert main([*words, "-o", output, "--methods", "uniform", "--budgets", "5"]) == 0
    shown = rows(capsys.readouterr().out)["uniform at 5"]
    assert float(shown["relative error"]) > 0
    assert float(shown["cosine"]) > 0.9
    assert "KL" not in shown
    assert "relative error" in (tmp_path / "out" / "compare.svg").read_text()

    assert main([*words, "-o", f"{output}2", "--methods", "uniform", "--budgets", "1"]) == 5
    assert rows(capsys.readouterr().out)["uniform at 1"]["result"] == "infeasible"
    assert not (tmp_path / "out2" / "compare.svg").exists()

    # A preset that knows no file budget is a row, and the others go on.
    presets = {
        **pipelines.PRESETS,
        "bare": Preset("", ("normalize", "allocate-bits{budget=@budget}")),
    }
    monkeypatch.setattr(pipelines, "PRESETS", presets)
    asked = ["--methods", "bare,uniform", "--file-budgets", "5"]
    assert main([*words, "-o", output, *asked]) == 0
    seen = capsys.readouterr()
    assert rows(seen.out)["bare at file 5"]["relative error"] == "infeasible"
    assert float(rows(seen.out)["uniform at file 5"]["relative error"]) > 0
    assert "- bare at file 5: infeasible: the pipeline has no annotate-sensitivity" in seen.out


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        (["--methods", "defualt"], 2, "did you mean 'default'?"),
        (["--budgets", "3,many"], 2, "'many' is no number"),
        (["--budgets", "3", "60MB"], 2, "equal stored bits"),
        (["--file-budgets", "60MB"], 2, "equal stored bits"),
        (["--budgets", "77"], 2, "not between"),
        (["--methods", "no-such-file.toml"], 3, "no-such-file.toml"),
        (["--outputs", "nonsense"], 2, "unknown outputs"),
        (["--eval-samples", "0"], 2, "a whole number from 1"),
        (["--keeep"], 2, "did you mean '--keep'?"),
        (["--target", "ort-cpo"], 2, "ort-cpu"),
    ],
)
def test_bad_words(
    more: list[str], code: int, word: str, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert main([*words, *more]) == code
    seen = capsys.readouterr()
    assert word in seen.err
    assert seen.out == ""
    assert not (tmp_path / "out" / "compare.json").exists()


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        ('pipeline = "normalize"', 2, "holds no methods"),
        ("[methods]", 2, "holds no methods"),
        ("[methods]\na = 3", 2, "'a' is no method"),
        ('[methods]\n"../a" = "normalize"', 2, "is no method"),
        ('[methods]\ndefault = "normalize"', 2, "is a preset"),
        ('[methods]\na = "normalize"', 2, "method 'a': the pipeline has no allocate-bits"),
        ('[methods]\na = "default + split{x=1}"', 2, "no pass 'split'"),
        ('[methods]\na = "defalt + calibrate"', 2, "did you mean 'default'?"),
        ('[methods]\na = "default + allocate-bits{fld=true}"', 2, "did you mean 'fold'?"),
        ("[methods", 3, "no TOML"),
    ],
)
def test_bad_files_of_methods(
    content: str, code: int, word: str, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "methods.toml"
    path.write_text(content)
    assert main([*words, "--methods", str(path)]) == code
    assert word in capsys.readouterr().err


def test_two_files_with_one_name(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    files = [recipe(tmp_path / f"{at}.toml", same=PIPELINE + " " * at) for at in range(2)]
    assert main([*words, "--methods", *files]) == 2
    assert "two methods are called 'same'" in capsys.readouterr().err
    assert [one.name for one in read_methods([files[0], "default", files[0]])] == [
        "same",
        "default",
    ]


def test_places_that_must_not_be_written(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious").write_text("mine")
    assert main([*words, "--methods", "default"]) == 2
    assert "holds no comparison" in capsys.readouterr().err
    with opened(output, overwrite=True):
        assert main([*words, "--methods", "default", "--overwrite"]) == 2
        assert "another comparison" in capsys.readouterr().err
    assert [one.name for one in output.iterdir()] == ["precious"]
    model = str(tmp_path / "model")
    assert main([*words, "--methods", "default", "-o", model, "--overwrite"]) == 2
    assert "replace the input" in capsys.readouterr().err


def test_broken_measurements_are_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"given": {}, "measured": []}', '{"given": 1, "measured": {}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match="no measurement"):
            Kept(tmp_path / "x.json")


@pytest.mark.parametrize("log_x", [False, True])
def test_charts_are_svg_whatever_they_show(log_x: bool) -> None:
    chart = Chart("x & y", "<b>", log_x=log_x, joined=("a",), diagonal=True)
    points = [(0.0, 1.0), (2.5, 0.1), (3.0, 1e-6), (4.0, float("nan")), (5.0, 0.0)]
    root = ET.fromstring(chart.draw({"a": points, "b": []}))
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert {"x & y", "<b>", "a", "b"} <= set(texts)
    markers = list(root.iter(f"{SVG}path"))
    assert len(markers) == (2 if log_x else 3) + 2  # and one beside each name
    assert chart.draw({"a": []}) == ""
    assert chart.draw({"a": [(1.0, 1.0)]}).startswith("<svg")


def test_names_of_lines_do_not_overlap_and_keep_their_order() -> None:
    names = [f"{at}, and what is changed in it" for at in range(8)]
    points = [
        {"status": "measured", "method": name, "bits": bits, "kl": 0.1 + 1e-4 * at + 1 / bits}
        for at, name in enumerate(names)
        for bits in (2.0, 3.0)
    ]
    root = ET.fromstring(draw(points))
    places = {one.text: float(one.get("y", 0)) for one in root.iter(f"{SVG}text")}
    rows = sorted((places[name], name) for name in names)
    assert [name for _, name in rows] == names[::-1]  # the largest KL is at the top
    assert min(b - a for (a, _), (b, _) in pairwise(rows)) >= 15
    width, height = map(float, str(root.get("viewBox")).split()[2:])
    assert rows[-1][0] < height
    assert max(float(one.get("x", 0)) for one in root.iter(f"{SVG}text")) + 150 < width


def test_colors_differ_enough_from_the_paper() -> None:
    def luminance(color: str) -> float:
        parts = [int(one, 16) / 255 for one in re.findall("..", color[1:])]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(one, "#ffffff") for one in chart._LIGHT) > 3
    assert min(contrast(one, "#0d1117") for one in chart._DARK) > 4.5


def test_what_is_no_number_is_not_drawn() -> None:
    """A resumed comparison drew it again and again, and never came to an end."""
    point = {"method": "a", "status": "measured", "bits": 3.0, "kl": 0.5}
    root = ET.fromstring(draw([point, {**point, "bits": 2.0, "kl": None}]))
    assert "a" in "".join(root.itertext())

"""A new lowering pass needs a file, a line and a golden case; ``tools/`` names no pass."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import mpqc
from mpqc.backend.onnxruntime import capabilities
from mpqc.ir import InfeasibleBudget
from mpqc.passes.engine.pipeline import registry
from mpqc.passes.engine.pipeline.registry import pass_names
from mpqc.tools.cli import main
from mpqc.tools.inspection import inspect_file

from .test_contributing import load
from .tools.tiny_models import vector_model

ROOT = Path(__file__).resolve().parents[1]
FEW: dict[str, Any] = {"random_calibration": True, "samples": 4}
PART = "#part{unit=w, role=dequantize}"
CASE = f"""\
// Codes of a row have one scale; the note on the weight's reader says what they are.
// passes: lower-rows
// numbers: change
// again: changes
// weight: w float[64, 64] seed=1
// note: product quant{{unit=w, options=[8g32], counts=[64], rounding=nearest}}
<ir_version: 10, opset_import: ["" : 17]>
graph (float[N, 64] x) => (float[N, 64] y) {{ [product] y = MatMul(x, w) }}
// output
input %x : f32[N,64]
@w/codes : i8[64,64]
@w/scales : f32[64]
%w/dequantized = DequantizeLinear(@w/codes, @w/scales) {{axis=1}} : f32[64,64] {PART}
%y = MatMul(%x, %w/dequantized) : f32[N,64]
return %y
drops #quant from product
"""
STEPS = (
    "normalize,partition-blocks,calibrate,annotate-sensitivity,allocate-bits,quantize-weights,"
    "lower-rows,verify-numerics"
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The pass as if it stood in passes/, with its line in the registry."""
    load("mpqc.passes.lower_rows", ROOT / "tests" / "passes" / "lower_rows.py")
    monkeypatch.setitem(registry._BY_NAME, "lower-rows", "lower_rows:LowerRows")
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))


def test_its_golden_case_holds(tmp_path: Path) -> None:
    golden = load("golden_of_lowering", ROOT / "tests/passes/test_golden.py")
    path = tmp_path / "rows.txt"
    path.write_text(CASE)
    case = golden.read_case(path)
    model, context = golden.build_model(case), golden.build_context(case, tmp_path)
    assert golden.come_out(case, model, context) == case.expected


@pytest.mark.ort
def test_compile_and_opt_run_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, dumps = vector_model(tmp_path / "in" / "vector.onnx"), tmp_path / "dumps"
    result = mpqc.compile(
        model, budget=8.6, passes=STEPS, output=tmp_path / "out", dump_after_each=dumps, **FEW
    )
    assert result.report["passes"]["lower-rows"] == {"lowered": 2}
    assert 8 < result.got <= 8.6
    assert inspect_file(result.model).storage.bits_per_weight == pytest.approx(result.got)
    assert result.measured["cosine"] > 0.95
    (dump,) = dumps.glob("*_quantize-weights.onnx")
    assert main(["opt", str(dump), "-p", "lower-rows{largest=7}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["pipeline"] == "lower-rows{largest=7}"
    assert "DequantizeLinear" in answer["graph"]


@pytest.mark.ort
def test_its_results_are_held_to_the_budget(tmp_path: Path) -> None:
    """It stores eight bits whatever was allocated, which must not pass for three."""
    model = vector_model(tmp_path / "in" / "vector.onnx")
    with pytest.raises(InfeasibleBudget, match=r"takes 8\..* 3 were asked for"):
        mpqc.compile(model, budget=3, passes=STEPS, output=tmp_path / "out", **FEW)


@pytest.mark.ort
def test_a_target_can_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = capabilities._tables()
    rows = {**tables["qdq"], "lowering": "lower-rows"}
    monkeypatch.setattr(capabilities, "_tables", lambda: {**tables, "rows": rows})
    model = vector_model(tmp_path / "in" / "vector.onnx")
    result = mpqc.compile(
        model, budget=8.6, target="rows", preset="fast", output=tmp_path / "out", **FEW
    )
    assert "lower-rows,verify-numerics" in result.report["pipeline"]
    assert result.report["passes"]["lower-rows"] == {"lowered": 2}


def named_in(path: Path) -> list[str]:
    """Returns the passes that a file names; words without a dash count at a start of text."""
    text = path.read_text(encoding="utf-8")
    found = [name for name in pass_names() if "-" in name and re.search(rf"\b{name}\b", text)]
    if path.suffix == ".py":
        nodes = ast.walk(ast.parse(text))
        words = [one.value for one in nodes if isinstance(one, ast.Constant)]
        parts = {part for word in map(str, words) for part in re.split(r"[,{]", word)}
        found += [name for name in pass_names() if "-" not in name and name in parts]
    return found


def test_tools_name_no_pass_outside_the_table_of_pipelines() -> None:
    assert len(set(named_in(ROOT / "tools" / "pipelines.py"))) > 10
    files = [*ROOT.glob("tools/**/*.py"), *ROOT.glob("tools/**/*.j2")]
    named = {path.name: named_in(path) for path in files if path.name != "pipelines.py"}
    assert {name: found for name, found in named.items() if found} == {}

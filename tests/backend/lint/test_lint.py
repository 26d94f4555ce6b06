"""Rules of runtimes: what breaks them is found, what does not is left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mpqc.backend.lint import ERROR, TARGETS, fix, lint, load_rules
from mpqc.backend.lint.checks import CHECKS
from mpqc.backend.lint.fixes import FIXES
from mpqc.backend.onnxruntime import open_session
from mpqc.ir import InputError, MpqcError, UsageError, write_model
from mpqc.tools import cli
from mpqc.tools.lint import lint_file

from .clean import CLEAN
from .planted import PLANTED, Planted, codes, floats, made, steps

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_rule_has_a_check_a_source_and_a_planted_model() -> None:
    rules = load_rules()
    assert set(rules) == set(CHECKS) == set(PLANTED)
    assert len(rules) >= 40
    assert {name for name, rule in rules.items() if rule.fix} == set(FIXES)
    assert set(TARGETS) == {"tensorrt", "ort-cpu", "ort-cuda", "openvino", "web"}
    for rule in rules.values():
        assert rule.level in ("error", "warning", "note")
        assert rule.source == "measured" or rule.source.startswith("https://")
        assert all((rule.title, rule.why, rule.remedy, rule.since))
        assert not re.search(r"\s$", rule.why + rule.remedy)


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    planted = PLANTED[name]
    assert planted.target in load_rules()[name].targets
    found = lint(planted.model(), planted.target, size=planted.size)
    assert name in {one.rule.id for one in found}
    for target in set(TARGETS) - set(load_rules()[name].targets):
        assert name not in {one.rule.id for one in lint(planted.model(), target)}


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.ort
def test_a_repair_leaves_what_a_graph_computes(name: str) -> None:
    planted = PLANTED[name]
    model = planted.model()
    before = outputs(model, planted)
    repaired = fix(model, planted.target)
    wanted = {one.rule.id for one in repaired}
    left = {one.rule.id for one in lint(model, planted.target)}
    assert name in wanted
    assert name not in left
    onnx.checker.check_model(ir.to_proto(model))
    if before is not None:
        after = outputs(model, planted)
        assert after is not None
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def outputs(model: ir.Model, planted: Planted) -> np.ndarray | None:
    """Runs a graph; None where the CPU cannot, before the repair."""
    try:
        with open_session(model, threads=1) as session:
            return next(iter(session.run(planted.feeds).values()))
    except MpqcError:
        return None


@pytest.mark.ort
def test_unsigned_weights_around_the_middle_become_signed() -> None:
    text = """g (float[4, 64] x) => (float[4, 32] y) {
        q = QuantizeLinear(x, t, z) a = DequantizeLinear(q, t, z)
        w = DequantizeLinear <axis = 1> (c, s, u) y = MatMul(a, w) }"""
    model = made(
        text,
        t=np.float32(0.05),
        z=np.uint8(128),
        c=codes(64, 32, dtype=np.uint8),
        s=steps(32),
        u=np.full(32, 128, np.uint8),
    )
    planted = Planted("tensorrt", lambda: model, PLANTED["trt-zero-point"].feeds)
    before = outputs(model, planted)
    assert len(fix(model, "tensorrt")) == 2  # the pair, and the weight
    assert not [one for one in lint(model, "tensorrt") if one.rule.level == ERROR]
    np.testing.assert_array_equal(before, outputs(model, planted))


CHANGED_PAIR = """g (uint8[4] x) => (float[4] y) { z = Identity(z1) u = Identity(z2)
    d = DequantizeLinear(x, s, z) q = QuantizeLinear(d, s, u)
    y = DequantizeLinear(q, s, u) }"""
IN_BRANCH = """g (bool b, float[4, 64] x) => (float[4, 64] y) {
    y = If (b) <
      then_branch = one () => (float[4, 64] t) {
        q = QuantizeLinear <axis = 1> (f, s, z) w = DequantizeLinear <axis = 1> (q, s, z)
        t = Add(x, w) },
      else_branch = other () => (float[4, 64] u) { u = Add(x, f) }> }"""
TAKEN = """g (float[4, 64] x) => (float[4, 32] y, float[4, 32] v) {
    w = DequantizeLinear <axis = 1> (c, s) y = MatMul(x, w) k = Relu(x) v = MatMul(k, w) }"""
MADE_ZERO = """g (float[4, 64] x) => (float[4, 64] y) { z = Cast <to = 2> (n)
    q = QuantizeLinear(x, t, z) y = DequantizeLinear(q, t, z) }"""


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        (CHANGED_PAIR, {"s": np.float32(0.02), "z1": np.uint8(128), "z2": np.uint8(3)}),
        (IN_BRANCH, {"f": floats(4, 64), "s": steps(64), "z": np.zeros(64, np.int8)}),
        (TAKEN, {"c": codes(64, 32), "s": steps(32), "w/1": floats(2)}),
        (MADE_ZERO, {"t": np.float32(0.05), "n": np.float32(128)}),
    ],
    ids=[
        "other zero points",
        "in a branch",
        "a name that is taken",
        "a cast zero point",
    ],
)
@pytest.mark.ort
def test_hard_repairs(text: str, arrays: dict[str, Any]) -> None:
    model = made(text, **arrays)
    random = np.random.default_rng(5)
    feeds: dict[str, np.ndarray] = {"x": floats(4, 64)}
    if "uint8[4] x" in text:
        feeds = {"x": random.integers(0, 256, 4).astype(np.uint8)}
    if "bool b" in text:
        feeds["b"] = np.array(True)
    planted = Planted("tensorrt", lambda: model, feeds)
    before = outputs(model, planted)
    assert before is not None
    for target in TARGETS:
        fix(model, target)
        onnx.checker.check_model(ir.to_proto(model))
        after = outputs(model, planted)
        assert after is not None
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


FINE = [
    ("z = Identity(n) q = QuantizeLinear(x, t, z) y = DequantizeLinear(q, t, z)", "tensorrt"),
    ("q = Cast <to = 3> (x) p = MatMulInteger(q, c) y = Cast <to = 1> (p)", "ort-cuda"),
    ("y = Pow(x, two)", "tensorrt"),
]


@pytest.mark.parametrize(("text", "target"), FINE)
def test_valid_graphs_have_no_errors(text: str, target: str) -> None:
    arrays: dict[str, Any] = {
        "t": np.float32(0.05),
        "n": np.int8(0),
        "c": codes(64, 64),
        "two": np.int64(2),
    }
    used = {name: array for name, array in arrays.items() if re.search(rf"\b{name}\b", text)}
    model = made(f"g (float[4, 64] x) => (float[4, 64] y) {{ {text} }}", **used)
    found = [one.rule.id for one in lint(model, target) if one.rule.level == ERROR]
    assert found == []


@pytest.mark.parametrize(
    ("name", "target"), [(n, t) for n, (_, ts) in CLEAN.items() for t in ts]
)
@pytest.mark.filterwarnings("ignore")
def test_clean_graphs_of_other_tools(name: str, target: str, tmp_path: Path) -> None:
    make: Callable[[Path], Path] = CLEAN[name][0]
    linted = lint_file(make(tmp_path), target)
    assert [(one.rule.id, one.place, one.detail) for one in linted.findings] == []


def saved(name: str, folder: Path) -> Path:
    path = folder / "planted.onnx"
    write_model(PLANTED[name].model(), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_says_what_where_and_what_would_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = saved("trt-unsigned-codes", tmp_path)
    code, out, _ = run(capsys, "lint", path, "--target", "tensorrt")
    assert code == 1
    assert "error trt-unsigned-codes: codes are unsigned" in out
    assert "QuantizeLinear" in out
    assert "--fix" in out
    assert "errors, 0 warnings, 0 notes for tensorrt" in out
    sarif = tmp_path / "ci" / "found.sarif"
    words = ("--target", "tensorrt", "--fix", "-o", tmp_path / "fixed", "--sarif", sarif)
    code, out, _ = run(capsys, "lint", path, *words)
    assert code == 0
    assert "repaired: trt-unsigned-codes (1)" in out
    assert run(capsys, "lint", tmp_path / "fixed", "--target", "tensorrt")[0] == 0
    told = json.loads(sarif.read_text())
    assert told["version"] == "2.1.0"
    assert told["runs"][0]["results"] == []


def test_findings_as_json_and_sarif(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, sarif = saved("trt-foreign-operator", tmp_path), tmp_path / "found.sarif"
    code, out, _ = run(
        capsys, "lint", path, "--target", "tensorrt", "--json", "--sarif", sarif
    )
    assert code == 1
    (found,) = json.loads(out)["findings"]
    assert found["rule"] == "trt-foreign-operator"
    assert found["operator"] == "QuickGelu"
    told = json.loads(sarif.read_text())["runs"][0]
    (result,) = told["results"]
    rule = told["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert rule["id"] == result["ruleId"] == "trt-foreign-operator"
    assert result["level"] == "error"


def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = saved("nbits-width", tmp_path)
    code, _, said = run(capsys, "lint", path, "--target", "tensorr")
    assert code == 2
    assert "did you mean 'tensorrt'?" in said
    assert run(capsys, "lint", path, "--fix")[0] == 2
    assert run(capsys, "lint", path, "-o", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()
    assert run(capsys, "lint", tmp_path / "none.onnx")[0] == 3
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert run(capsys, "lint", tmp_path / "broken.onnx")[0] == 3
    with pytest.raises(UsageError, match="no rules"):
        lint_file(path, "qdq")
    with pytest.raises(InputError):
        lint_file(tmp_path / "none.onnx", "web")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from mpqc.ir import BlockId, annotate, model_key, read_model, write_model

from .texts import model, ramp

TEXT = """g (float[N, 64] x, bool c) => (float[N, 64] y) {
    h = Gemm <alpha = 1.0> (x, w)
    y = If (c) <
        then_branch = yes () => (float[N, 64] a) { a = LeakyRelu <alpha = 0.5> (h) },
        else_branch = no () => (float[N, 64] b) { b = Identity (h) }
    >
}"""


def fresh() -> ir.Model:
    return model(TEXT, w=(64, 64))


def inner(found: ir.Model) -> ir.Node:
    return found.graph[1].attributes["then_branch"].as_graph()[0]


SAME: dict[str, Callable[[ir.Model], object]] = {
    "notes": lambda m: annotate(m.graph[0], BlockId(1)),
    "documentation": lambda m: setattr(m, "doc_string", "text"),
    "node names": lambda m: setattr(m.graph[0], "name", "other"),
    "producer": lambda m: setattr(m, "producer_name", "other"),
}
OTHER: dict[str, Callable[[ir.Model], object]] = {
    "a weight": lambda m: setattr(
        m.graph.initializers["w"], "const_value", ir.Tensor(ramp(64, 64) + 1, name="w")
    ),
    "an attribute": lambda m: m.graph[0].attributes.add(ir.AttrFloat32("alpha", 2.0)),
    "an inner attribute": lambda m: inner(m).attributes.add(ir.AttrFloat32("alpha", 0.25)),
    "an operator": lambda m: setattr(inner(m), "op_type", "Elu"),
    "an opset": lambda m: m.opset_imports.update({"": 18}),
    "a connection": lambda m: inner(m).replace_input_with(0, m.graph.inputs[0]),
}


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_result_changes_no_key(change: str) -> None:
    found = fresh()
    SAME[change](found)
    assert model_key(found) == model_key(fresh())


@pytest.mark.parametrize("change", OTHER)
def test_what_changes_results_changes_the_key(change: str) -> None:
    found = fresh()
    OTHER[change](found)
    assert model_key(found) != model_key(fresh())


def test_the_layout_of_files_does_not_matter(tmp_path: Path) -> None:
    write_model(fresh(), tmp_path / "a.onnx")
    write_model(fresh(), tmp_path / "b.onnx", shared=tmp_path / "w")
    keys = {model_key(read_model(tmp_path / name)) for name in ("a.onnx", "b.onnx")}
    assert keys == {model_key(fresh())}

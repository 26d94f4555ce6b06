"""What mpqc says a file holds, against a count by someone who knows nothing of mpqc."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mpqc
from mpqc.tools.cli import main
from mpqc.tools.inspection import inspect_file

from ..e2e.models import in_constant_nodes, shared_behind_identity, with_control_flow
from .tiny_models import WIDTH, language_model, save, vector_model, weight

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort]

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.INT64: 64,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.BOOL: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


def constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t
            if attribute.HasField("g"):
                yield from constants(attribute.g)


def sizes(path: Path) -> tuple[dict[str, int], set[str]]:
    """Returns the bytes of every constant of a file by name, and which are floats."""
    found = dict(constants(onnx.load(path, load_external_data=False).graph))
    counted = {
        name: -(-prod(tensor.dims) * _BITS[tensor.data_type] // 8)
        for name, tensor in found.items()
    }
    return counted, {name for name, one in found.items() if one.data_type in _FLOATS}


def recurrent(path: Path) -> Path:
    """An LSTM whose weights come as a slice of a larger one, as older exporters write it."""
    shape = ["tokens", 1, WIDTH]
    ints = {"zero": [0], "one": [1], "directions": [1]}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "first_product"),
        helper.make_node("Concat", ["left", "right"], ["kernel"], "join", axis=2),
        helper.make_node("Slice", ["all", "zero", "one", "zero"], ["recurrence"], "cut"),
        helper.make_node(
            "LSTM", ["h", "kernel", "recurrence", "bias"], ["s"], "lstm", hidden_size=WIDTH
        ),
        helper.make_node("Squeeze", ["s", "directions"], ["y"], "squeeze"),
    ]
    weights = [
        weight("first", (WIDTH, WIDTH), 1),
        weight("left", (1, 4 * WIDTH, WIDTH // 2), 2),
        weight("right", (1, 4 * WIDTH, WIDTH // 2), 3),
        weight("all", (2, 4 * WIDTH, WIDTH), 4),
        weight("bias", (1, 8 * WIDTH), 5),
        *(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in ints.items()),
    ]
    return _floats(nodes, weights, shape, path)


def with_positions(path: Path) -> Path:
    """Tables read with constant indices and by a slice, small weights, norms and biases."""
    ints = {"places": range(16), "start": [2], "stop": [18], "axis": [0]}
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["found"], "lookup"),
        helper.make_node("Slice", ["other", "start", "stop", "axis"], ["cut"], "slice"),
        helper.make_node("Add", ["x", "found"], ["a"], "add_found"),
        helper.make_node("Add", ["a", "cut"], ["b"], "add_cut"),
        helper.make_node("Gemm", ["b", "first", "bias"], ["c"], "first_product"),
        helper.make_node("LayerNormalization", ["c", "gain", "bias"], ["d"], "norm"),
        helper.make_node("MatMul", ["d", "down"], ["e"], "down_product"),
        helper.make_node("MatMul", ["e", "up"], ["y"], "up_product"),
    ]
    weights = [
        weight("table", (128, WIDTH), 1),
        weight("other", (96, WIDTH), 2),
        weight("first", (WIDTH, WIDTH), 3),
        weight("bias", (WIDTH,), 4),
        weight("gain", (WIDTH,), 5),
        weight("down", (WIDTH, 8), 6),
        weight("up", (8, WIDTH), 7),
        *(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in ints.items()),
    ]
    return _floats(nodes, weights, [16, WIDTH], path)


def twice(path: Path) -> Path:
    """The same weight twice, and one that nothing reads."""
    names = ("once", "again")
    nodes = [
        helper.make_node("MatMul", ["x", "once"], ["h"], "first_product"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "again"], ["y"], "second_product"),
    ]
    equal = [weight(name, (WIDTH, WIDTH), 1) for name in names]
    return _floats(nodes, [*equal, weight("unread", (64, 128), 3)], [16, WIDTH], path)


def _floats(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: Any, path: Path
) -> Path:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    return save(nodes, ends[:1], ends[1:], weights, path)


# By name: how it is made, a budget, and its number of weights in units.
STRUCTURES: dict[str, tuple[Callable[[Path], Path], float, int]] = {
    "language": (language_model, 4.5, 49152),
    "vector": (vector_model, 3.5, 16384),
    "shared": (shared_behind_identity, 5, 8192),
    "constants": (in_constant_nodes, 4.5, 16384),
    "control flow": (with_control_flow, 8.5, 28672),
    "recurrent": (recurrent, 8.5, 36864),
    "positions": (with_positions, 8.5, 13312),
    "twice": (twice, 4.5, 4096),
}


def compiled(name: str, folder: Path, **options: Any) -> mpqc.CompileResult:
    make, budget, _ = STRUCTURES[name]
    given: dict[str, Any] = {
        "preset": "fast",
        "samples": 8,
        "random_calibration": True,
        **options,
    }
    given |= {"output": folder / "out", "cache": folder / "cache"}
    return mpqc.compile(make(folder / "model.onnx"), budget=budget, **given)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_byte_of_the_file_is_told(name: str, tmp_path: Path) -> None:
    result = compiled(name, tmp_path)
    found = inspect_file(result.model)
    facts, report = found.facts(), json.loads((result.output / "mpqc.json").read_text())
    counted, floats = sizes(result.model)
    units = sum(unit["bytes"] for unit in facts["units"])
    loose = {one["name"]: one["bytes"] for one in facts["left_in_float"]}
    # Everything is somewhere, and nothing twice.
    assert units + facts["other_bytes"] == sum(counted.values())
    assert units == facts["weight_bytes"] == sum(u["bytes"] for u in report["units"])
    assert 0 <= facts["file_bytes"] - sum(counted.values()) < 1 << 16
    # What is loose is named, with its bytes and a reason; no integer is called a float.
    assert loose == {name: counted[name] for name in loose}
    assert loose.keys() <= floats
    assert all(one["reason"] for one in facts["left_in_float"])
    # The figures are those of these bytes.
    weights = sum(unit["rows"] * unit["columns"] for unit in facts["units"])
    entries = sum(one["entries"] for one in facts["left_in_float"])
    assert weights == facts["weights"] == result.weights == STRUCTURES[name][2]
    assert facts["bits_per_weight"] == pytest.approx(units * 8 / weights)
    whole = (units + sum(loose.values())) * 8 / (weights + entries)
    assert facts["whole_file_bits"] == pytest.approx(whole)
    assert result.whole_file_bits == pytest.approx(whole)
    assert result.got == pytest.approx(facts["bits_per_weight"])
    assert report["left_in_float"] == facts["left_in_float"]


def test_weights_that_are_put_together_are_units(tmp_path: Path) -> None:
    result = compiled("recurrent", tmp_path)
    names = {unit["name"] for unit in result.report["units"]}
    assert names == {"first", "kernel/folded", "recurrence/folded"}
    assert 8.2 < result.got <= 8.5


def test_a_file_that_is_mostly_loose_floats_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compiled("positions", tmp_path)
    assert result.whole_file_bits > 14 > result.got
    reasons = {one["name"]: one["reason"] for one in result.report["left_in_float"]}
    assert reasons["other"] == "Add 'add_cut' reads it through Slice"
    warning = result.report["warning"]
    assert "constants outside all units, the largest of them 'other'" in warning
    assert warning in (result.output / "report.html").read_text().replace("&#39;", "'")
    assert main(["inspect", str(result.model)]) == 0
    shown = capsys.readouterr().out
    assert f"warning: {warning}" in shown
    assert "Add 'add_cut' reads it through Slice" in shown


def test_tables_that_constants_look_up_are_units(tmp_path: Path) -> None:
    result = compiled("positions", tmp_path)
    bits = {unit["name"]: unit["bits"] for unit in result.report["units"]}
    assert bits.keys() == {"table", "first", "down", "up"}
    assert not [unit for unit in result.report["units"] if unit.get("reason")]
    widths = {width for unit in result.report["units"] for width in unit["widths"]}
    assert "32" not in widths
    assert max(bits.values()) < 19  # codes of 16 bits; scales and shapes weigh on small ones
    loose = {one["name"] for one in result.report["left_in_float"]}
    assert {"other", "bias", "gain"} <= loose


@pytest.mark.parametrize("budget", [10, 8])
def test_places_that_the_model_looks_up_are_no_storage_of_the_table(
    budget: int, tmp_path: Path
) -> None:
    """A table that is read at more places than its codes have bytes keeps its budget."""
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["found"], "lookup"),
        helper.make_node("Add", ["x", "found"], ["y"], "add"),
    ]
    places = numpy_helper.from_array(np.arange(2048) % 8, "places")
    model = _floats(
        nodes, [weight("table", (64, WIDTH), 1), places], [2048, WIDTH], tmp_path / "m.onnx"
    )
    result = mpqc.compile(
        model, budget=budget, output=tmp_path / "out", samples=2, random_calibration=True
    )
    assert budget / 2 < result.got <= budget

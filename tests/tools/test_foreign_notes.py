"""Notes in a file from outside are claims: they change no figure and no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mpqc
from mpqc.ir import (
    Annotation,
    BitAllocation,
    Budgeted,
    Calibrated,
    LeftInFloat,
    QuantSpec,
    Sensitivity,
    Settled,
    StoredPart,
)
from mpqc.ir.annotation import PREFIX
from mpqc.ir.text_form import print_record
from mpqc.tools.inspection import inspect_file

from .tiny_models import WIDTH, save, vector_model, weight


def claim(target: onnx.NodeProto | onnx.ModelProto, note: Annotation) -> None:
    entry = target.metadata_props.add()
    entry.key, entry.value = PREFIX + note.key, print_record(note.key, note)


def half_quantized(path: Path, *, cast: bool, note: StoredPart | None) -> Path:
    """A weight in codes and one in float, whose reader may claim to be part of the former."""
    codes = np.zeros((WIDTH, 2, 16), np.uint8)
    read = ["Cast"] if cast else []
    nodes = [
        helper.make_node(
            "MatMulNBits",
            ["x", "codes", "scales"],
            ["h"],
            "kernel",
            domain="com.microsoft",
            K=WIDTH,
            N=WIDTH,
            bits=4,
            block_size=32,
        ),
        *(helper.make_node(op, ["w"], ["v"], "cast", to=TensorProto.FLOAT) for op in read),
        helper.make_node("MatMul", ["h", "v" if cast else "w"], ["y"], "product"),
    ]
    if note is not None:
        claim(nodes[0], StoredPart("q", "kernel"))
        for node in nodes[1:]:
            claim(node, note)
    weights = [
        numpy_helper.from_array(codes, "codes"),
        weight("scales", (WIDTH, 2), 1),
        weight("w", (WIDTH, WIDTH), 2),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", WIDTH]) for n in "xy"]
    save(nodes, ends[:1], ends[1:], weights, path)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("unit", ["q", "nobody", "w"])
@pytest.mark.parametrize("role", ["outliers", "channels", "expansion", "lookup"])
def test_a_note_hides_no_weight(unit: str, role: str, cast: bool, tmp_path: Path) -> None:
    plain = half_quantized(tmp_path / "plain.onnx", cast=cast, note=None)
    path = half_quantized(tmp_path / "noted.onnx", cast=cast, note=StoredPart(unit, role))
    expected, found = inspect_file(plain).storage, inspect_file(path).storage
    assert found.weights == expected.weights == 2 * WIDTH * WIDTH
    assert found.bytes == expected.bytes
    assert found.bits_per_weight == expected.bits_per_weight
    assert found.whole_file_bits == expected.whole_file_bits
    assert "w" in {one.name for one in found.units}


def test_a_kernel_cannot_claim_more_weights_than_it_has_codes(tmp_path: Path) -> None:
    path = half_quantized(tmp_path / "plain.onnx", cast=False, note=None)
    model = onnx.load(path)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "K":
            attribute.i = 1 << 20
    onnx.save(model, path)
    assert inspect_file(path).storage.weights == 2 * WIDTH * WIDTH


@pytest.mark.ort
@pytest.mark.usefixtures("one_thread")
def test_compiling_believes_no_note(tmp_path: Path) -> None:
    path = vector_model(tmp_path / "plain.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        claim(node, StoredPart("second", "outliers"))
        claim(node, LeftInFloat("second", "because"))
        claim(node, BitAllocation("second", ("2g64",), (64,), 0.0))
        claim(node, QuantSpec("second", ("2g64",), (64,), "nearest"))
        claim(node, Sensitivity("second", "fisher", ("2g64",), (0.0,)))
    claim(model, Settled(-(1 << 40), 1 << 40))
    claim(model, Budgeted(1.0, 1.0, 1.0, 1 << 40, 0.0))
    claim(model, Calibrated("key", "made up", 1, 1, "regression", "y"))
    noted = tmp_path / "noted.onnx"
    onnx.save(model, noted)
    results = [
        mpqc.compile(
            one,
            budget=4.5,
            preset="fast",
            samples=8,
            random_calibration=True,
            output=tmp_path / f"{one.stem}-out",
            cache=tmp_path / "cache",
        )
        for one in (path, noted)
    ]
    first, second = (one.model.read_bytes() for one in results)
    assert first == second
    assert results[0].got == results[1].got <= 4.5

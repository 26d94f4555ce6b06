"""External data that escapes from inside a function body, through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mpqc.tools.cli import main

from .models import WIDTH

DOMAIN = "local"


def model_with_function(path: Path, location: str) -> Path:
    """Writes a model whose only weight is external data of a Constant in a function."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    body = helper.make_function(
        DOMAIN,
        "Product",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["w"], "constant", value=tensor),
            helper.make_node("MatMul", ["a", "w"], ["b"], "product"),
        ],
        [helper.make_opsetid("", 18)],
    )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in "xy"
    ]
    call = helper.make_node("Product", ["x"], ["y"], "call", domain=DOMAIN)
    graph = helper.make_graph([call], "tiny", ends[:1], ends[1:])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) / 8
    path.write_bytes(values.astype(np.float32).tobytes())
    return path


def words(command: str, model: Path, output: Path) -> list[str]:
    if command == "compile":
        more = ["--budget", "6", "-o", str(output), "--random-calibration", "--samples", "64"]
        return ["compile", str(model), *more]
    if command == "opt":
        return ["opt", str(model), "-p", "normalize,partition-blocks"]
    return ["inspect", str(model)]


@pytest.mark.parametrize("command", ["compile", "inspect", "opt"])
@pytest.mark.parametrize("place", ["parent", "absolute", "link", "missing"])
def test_refused(
    command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = weights(tmp_path / "secret.bin")
    locations = {"parent": "../secret.bin", "absolute": str(secret), "missing": "none.bin"}
    model = model_with_function(tmp_path / "in" / "m.onnx", locations.get(place, "link.bin"))
    if place == "link":
        (model.parent / "link.bin").symlink_to(secret)
    assert main(words(command, model, tmp_path / "out")) == 3
    seen = capsys.readouterr()
    lines = [line for line in seen.err.splitlines() if line.startswith("mpqc: ")]
    assert len(lines) == 1
    assert "Traceback" not in seen.err
    assert seen.out == ""
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "secret.bin"]


@pytest.mark.ort
def test_a_bare_file_name_beside_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the model itself is named without a folder."""
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    model = model_with_function(tmp_path / "in" / "m.onnx", "w.bin")
    weights(model.parent / "w.bin")
    monkeypatch.chdir(model.parent)
    command = words("compile", Path("m.onnx"), tmp_path / "out")
    assert main([*command, "--kernels", "always"]) == 0
    result = onnx.load(tmp_path / "out" / "model.onnx")
    assert [node.op_type for node in result.graph.node if node.op_type == "MatMulNBits"]


@pytest.mark.parametrize("place", ["parent", "absolute"])
def test_a_bare_file_name_is_no_way_out(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = weights(tmp_path / "secret.bin")
    location = {"parent": "../secret.bin", "absolute": str(secret)}[place]
    model = model_with_function(tmp_path / "in" / "m.onnx", location)
    monkeypatch.chdir(model.parent)
    assert main(words("compile", Path("m.onnx"), tmp_path / "out")) == 3
    assert not (tmp_path / "out").exists()

"""Targets whose device is not here: what is refused, when, and with which way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

import mpqc
from mpqc.backend.gpu import Driver, Gpu
from mpqc.backend.onnxruntime import placement
from mpqc.backend.onnxruntime.runner import RuntimeSession
from mpqc.ir import InfeasibleBudget, InputError, MachineError, UsageError
from mpqc.tools import compilation, memory
from mpqc.tools.cli import main

from .tiny_models import language_folder, language_model, vector_model

pytestmark = [pytest.mark.ort, pytest.mark.timeout(120)]
HOW: dict[str, Any] = {"random_calibration": True, "samples": 6, "preset": "fast"}


def compiled(model: Path, folder: Path, **options: Any) -> mpqc.CompileResult:
    return mpqc.compile(
        model, output=folder / "out", cache=folder / "cache", **{**HOW, **options}
    )


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (None, "no NVIDIA device"),
        (Driver("13.0", (Gpu("small", "9.0", 1000),)), "small has 0 MiB"),
    ],
)
def test_a_device_that_cannot_serve_is_named_with_a_way_out(
    driver: Driver | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "installed_runtime_problem", lambda target: None)
    monkeypatch.setattr(memory, "nvidia_driver", lambda: driver)
    with pytest.raises(MachineError, match=said) as caught:
        compiled(vector_model(tmp_path / "m.onnx"), tmp_path, budget=5, target="ort-cuda")
    assert "--prove-on cpu" in caught.value.hint


def test_a_runtime_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "installed_runtime_problem", lambda target: "no CUDA")
    with pytest.raises(MachineError, match="no CUDA"):
        compiled(vector_model(tmp_path / "m.onnx"), tmp_path, budget=5, target="ort-cuda")


def test_cuda_graphs_are_float16_in_layouts_with_kernels(tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "model")
    made = compiled(folder, tmp_path, budget=5.2, target="ort-cuda", prove_on="cpu")
    graph = onnx.load(made.model).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert products
    for node in products:
        how = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        assert how["block_size"] == (64 if how["bits"] == 2 else 32)
        assert how["N"] % {2: 128, 4: 64, 8: 32}[how["bits"]] == 0
        assert len(node.input) == 3  # no zero points, order or bias
    floats = {one.data_type for one in graph.initializer} & {1, 10}
    assert floats == {onnx.TensorProto.FLOAT16}
    facts = json.loads((tmp_path / "out" / "mpqc.json").read_text())
    assert facts["settings"]["prove_on"] == "cpu"
    assert "convert-floats" in facts["passes"]
    assert not facts["got"].get("times")


def test_numbers_that_overflow_are_named_and_stay(tmp_path: Path) -> None:
    """Activations of 100,000: the products that make and read them compute in float32."""
    model = onnx.load(vector_model(tmp_path / "m.onnx"))
    first = next(one for one in model.graph.initializer if one.name == "first")
    array = onnx.numpy_helper.to_array(first) * 3e4
    first.CopyFrom(onnx.numpy_helper.from_array(array, "first"))
    onnx.save(model, tmp_path / "large.onnx")
    made = compiled(tmp_path / "large.onnx", tmp_path, budget=16.1, target="tensorrt")
    facts = json.loads((tmp_path / "out" / "mpqc.json").read_text())
    reasons = facts["passes"]["convert-floats"]["reasons"]
    assert any("float16 ends at 65504" in why for why in reasons.values())
    assert made.report["measured"]["relative_error"] < 0.01


def test_a_budget_that_tensorrt_cannot_reach_names_the_smallest(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        compiled(language_model(tmp_path / "m.onnx"), tmp_path, budget=3.5, target="tensorrt")
    assert caught.value.smallest is not None
    assert caught.value.smallest > 4.1


def test_operators_that_tensorrt_does_not_know_are_refused_at_once(tmp_path: Path) -> None:
    path = vector_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[1].op_type, model.graph.node[1].domain = "FastGelu", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(InputError, match="FastGelu"):
        compiled(path, tmp_path, budget=8.5, target="tensorrt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "tensort"}, "tensorrt"),
        ({"target": "tensorrt", "activations": "uint8"}, "int8 or fp8"),
        ({"target": "qdq", "activations": "fp8"}, "int8 or uint8"),
        ({"target": "ort-cpu", "activations": "fp8"}, "uint8"),
        ({"target": "tensorrt", "file_budget": 3.5, "budget": None}, "expand"),
        ({"target": "tensorrt", "preset": "cmpq-even"}, "no form"),
        ({"target": "qdq", "allow_fallback": True}, "nothing can fall back"),
    ],
)
def test_what_a_target_cannot_do_is_a_matter_of_usage(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        compiled(vector_model(tmp_path / "m.onnx"), tmp_path, **{"budget": 8.5, **options})
    assert said in f"{caught.value} {caught.value.hint}"


class _Node:
    def __init__(self, op_type: str, name: str) -> None:
        self.op_type, self.name = op_type, name


class _Part:
    def __init__(self, provider: str, *nodes: _Node) -> None:
        self.ep_name, self._nodes = provider, nodes

    def get_nodes(self) -> tuple[_Node, ...]:
        return self._nodes


class _Session:
    def get_provider_graph_assignment_info(self) -> list[_Part]:
        shapes = _Part("CPUExecutionProvider", _Node("Shape", "s"), _Node("Gather", "g"))
        slow = _Part("CPUExecutionProvider", _Node("MatMulInteger", "product"))
        return [_Part("CUDAExecutionProvider", _Node("MatMul", "m")), shapes, slow]


def test_nodes_on_the_cpu_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = placement.fallen_back(_Session(), "CUDAExecutionProvider")
    assert found == [("MatMulInteger", "product")]
    with pytest.raises(MachineError, match=r"1 MatMulInteger.*'product'") as caught:
        placement.refuse_fallback(found, "CUDAExecutionProvider")
    assert "--allow-fallback" in caught.value.hint


def test_the_runtime_tells_where_its_nodes_run(tmp_path: Path) -> None:
    """The real call: of a session on the CPU, all of whose nodes are there."""
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry(*placement.RECORDED)
    path = str(vector_model(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    parts = session.get_provider_graph_assignment_info()
    assert {node.op_type for part in parts for node in part.get_nodes()} >= {"Relu"}
    assert placement.fallen_back(session, "OtherExecutionProvider")


def test_a_result_that_falls_back_is_refused_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(session: RuntimeSession) -> None:
        placement.refuse_fallback([("MatMul", "m")], "CUDAExecutionProvider")

    monkeypatch.setattr(RuntimeSession, "refuse_fallback", refuse)
    model = vector_model(tmp_path / "m.onnx")
    how: dict[str, Any] = {"budget": 8.6, "target": "ort-cuda", "prove_on": "cpu"}
    with pytest.raises(MachineError, match="instead of"):
        compiled(model, tmp_path, **how)
    assert not (tmp_path / "out").exists()
    assert compiled(model, tmp_path, **how, allow_fallback=True).model.is_file()


def test_export_in_standard_operators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), "--operators", "standart"]) == 2
    assert "standard" in capsys.readouterr().err

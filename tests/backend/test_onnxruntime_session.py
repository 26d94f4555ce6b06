from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import open_session, optimized_ops
from mpqc.backend.runner import Runner
from mpqc.ir import InputError, MachineError

pytestmark = pytest.mark.ort

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[m, 4] A) => (float[m, 4] Y, float[m, 4] Z) { Y = Neg(A) Z = Abs(A) }"""


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def test_runs_a_graph_or_a_file(tmp_path: Path) -> None:
    feeds = {"A": np.ones((2, 4), np.float32)}
    ir.save(model(), tmp_path / "model.onnx")
    for source in (model(), tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        with open_session(source, threads=1) as session:
            results = session.run(feeds)
            assert list(results) == ["Y", "Z"]
            assert list(session.run(feeds, ["Z"])) == ["Z"]
        np.testing.assert_array_equal(results["Y"], -feeds["A"])


def test_tells_inputs_and_outputs() -> None:
    with open_session(model()) as session:
        (given,) = session.inputs
        assert (given.name, given.type, given.shape) == ("A", "tensor(float)", ("m", 4))
        assert [one.name for one in session.outputs] == ["Y", "Z"]
        assert session.provider == "CPUExecutionProvider"


def test_a_sample_on_the_device_is_run_as_often_as_one_likes() -> None:
    with open_session(model()) as session:
        for feeds in ({"A": np.ones((2, 4), np.float32)}, {"A": np.ones((0, 4), np.float32)}):
            run = session.bound(feeds)
            run()
            run()
        with pytest.raises(InputError, match="the sample does not fit the model"):
            session.bound({"B": np.ones((2, 4), np.float32)})
        with pytest.raises(InputError, match="fails in ONNX Runtime"):
            session.bound({"A": np.ones((2, 3), np.float32)})()
        assert session.fallen_back() == []


def test_frees_the_model_on_exit() -> None:
    with open_session(model()) as session:
        pass
    with pytest.raises(AttributeError):
        _ = session._session


def test_wrong_feeds_are_the_input_s_fault() -> None:
    with open_session(model()) as session, pytest.raises(InputError, match="fails in ONNX"):
        session.run({"A": np.ones((2, 5), np.float32)})


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot load"), open_session(path):
        pass


def test_a_provider_that_the_build_lacks() -> None:
    refused = pytest.raises(MachineError, match="no NoSuchExecutionProvider")
    with refused as caught, open_session(model(), "NoSuchExecutionProvider"):
        pass
    assert "CPUExecutionProvider" in caught.value.hint


def test_no_silent_fallback_to_the_cpu() -> None:
    import onnxruntime

    others = set(onnxruntime.get_available_providers()) - {"CPUExecutionProvider"}
    for provider in sorted(others):
        try:
            with open_session(model(), provider) as session:
                assert session.provider == provider
        except MachineError:
            pass


def test_stray_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_SOMETHING", "1")
    with open_session(model()):
        assert os.environ["ORT_SOMETHING"] == "1"


def test_profile(tmp_path: Path) -> None:
    with open_session(model(), profile=True) as session:
        session.run({"A": np.ones((2, 4), np.float32)})
        assert "Neg" in session.end_profiling().read_text()


def test_optimized_ops_shows_what_is_left() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[m, 4] A) => (float[m, 4] Y)
        <float16[4] H = {1, 2, 3, 4}> { W = Cast <to = 1> (H) Y = Mul(A, W) }"""
    proto = onnx.parser.parse_model(text)
    assert optimized_ops(ir.from_proto(proto)) == {"Mul": 1}


def test_runner_joins_torch_and_the_runtime() -> None:
    runner, graph = Runner(), model()
    nodes = list(graph.graph)
    assert runner.unsupported(nodes) == {}
    module = runner.segment(nodes, graph.graph.inputs, graph.graph.outputs)
    import torch

    negated, _ = module(torch.ones(1, 4))
    assert negated.tolist() == [[-1.0] * 4]
    with runner.session(graph) as session:
        assert set(session.run({"A": np.ones((1, 4), np.float32)})) == {"Y", "Z"}

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mpqc.ir import MachineError, model_key, read_model, write_model

from .texts import model, ramp

TWO = "g (float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, v)  y = MatMul (h, w) }"
IF = """g (float[N, 64] x, bool c) => (float[N, 64] y) {
    y = If (c) <
        then_branch = yes () => (float[N, 64] a) { a = MatMul (x, v) },
        else_branch = no () => (float[N, 64] b) { b = MatMul (x, w) }
    >
}"""


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("text", [TWO, IF])
def test_what_is_written_reads_back_and_is_the_same_each_time(
    tmp_path: Path, text: str
) -> None:
    first = model(text, v=(64, 64), w=(64, 64))
    write_model(first, tmp_path / "model.onnx")
    again = read_model(tmp_path / "model.onnx")
    assert model_key(again) == model_key(first)
    assert sorted(stored(tmp_path)) == ["model.onnx", "model.onnx.data"]
    before = stored(tmp_path)
    write_model(first, tmp_path / "model.onnx")
    assert stored(tmp_path) == before
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_the_model_is_unchanged_and_alignment_holds(tmp_path: Path) -> None:
    found = model(TWO, v=(64, 65), w=ramp(65, 64))
    tensors = [value.const_value for value in found.graph.initializers.values()]
    write_model(found, tmp_path / "model.onnx")
    assert [value.const_value for value in found.graph.initializers.values()] == tensors
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "model.onnx.data"
        assert int(entries["offset"]) % 64 == 0


def test_small_models_have_no_data_file(tmp_path: Path) -> None:
    found = model("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=(4, 4))
    (tmp_path / "model.onnx.data").write_bytes(b"old")
    write_model(found, tmp_path / "model.onnx")
    assert sorted(stored(tmp_path)) == ["model.onnx"]


def test_a_tensor_that_two_values_share_is_stored_once(tmp_path: Path) -> None:
    found = model(TWO, v=(64, 64), w=(64, 64))
    values = found.graph.initializers
    values["w"].const_value = values["v"].const_value
    write_model(found, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size == 64 * 64 * 4
    assert set(read_model(tmp_path / "model.onnx").graph.initializers) == {"v", "w"}


@pytest.mark.parametrize(
    "dtype",
    [
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.UINT8,
        ir.DataType.BOOL,
        ir.DataType.INT64,
    ],
)
def test_every_type_keeps_its_values(tmp_path: Path, dtype: ir.DataType) -> None:
    found = model(TWO, v=(64, 64), w=(64, 64))
    array = (np.arange(5000).reshape(50, 100) % 2).astype(dtype.numpy())
    extra = ir.Value(name="k", const_value=ir.Tensor(array, dtype=dtype, name="k"))
    extra.shape, extra.dtype = ir.Shape([50, 100]), dtype
    found.graph.register_initializer(extra)
    write_model(found, tmp_path / "model.onnx")
    again = read_model(tmp_path / "model.onnx").graph.initializers["k"].const_value
    assert again is not None
    assert again.dtype == dtype
    assert np.array_equal(again.numpy().astype(np.float32), array.astype(np.float32))


def test_dumps_share_what_did_not_change(tmp_path: Path) -> None:
    found = model(TWO, v=(64, 64), w=ramp(64, 64) * 2)
    write_model(found, tmp_path / "1.onnx", shared=tmp_path / "weights")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "weights").iterdir()}
    assert len(times) == 2
    found.graph.initializers["w"].const_value = ir.Tensor(ramp(64, 64) * 3, name="w")
    write_model(found, tmp_path / "2.onnx", shared=tmp_path / "weights")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(list((tmp_path / "weights").iterdir())) == 3
    second = read_model(tmp_path / "2.onnx")
    assert model_key(second) == model_key(found)
    write_model(second, tmp_path / "3.onnx", shared=tmp_path / "weights")
    assert (tmp_path / "3.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("shared", [False, True])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, small_files: None, shared: bool
) -> None:
    path, beside = tmp_path / "model.onnx", tmp_path / "w" if shared else None
    write_model(model(TWO, v=(8, 64), w=(8, 64)), path, shared=beside)
    before = stored(tmp_path)
    with pytest.raises(MachineError) as caught:
        write_model(model(TWO, v=(64, 640), w=(640, 64)), path, shared=beside)
    assert caught.value.hint
    assert stored(tmp_path) == before
    assert caught.value.__cause__ is not None
    assert getattr(caught.value.__cause__, "errno", None) == errno.EFBIG


STACK = 'Traceback:\n  File "/home/someone/secret/model.py", line 12, in forward\n    x = y'
OLDER = "/home/someone/secret/model.py(12): forward\n/usr/lib/torch/module.py(1): _slow\n"


def test_traces_of_the_exporter_are_not_passed_on(tmp_path: Path) -> None:
    text = """g (float[N, 64] x, bool c) => (float[N, 64] y) {
        z = If (c) <then_branch = t () => (float[N, 64] p) { p = Neg(x) },
                    else_branch = e () => (float[N, 64] q) { q = Abs(x) }>
        y = MatMul(z, w) }"""
    found = model(text, w=(64, 64))
    nodes = [*found.graph, *found.graph[0].attributes["then_branch"].as_graph()]
    for target in (*nodes, *found.graph.inputs, found.graph, found):
        target.metadata_props.update(
            {
                "pkg.torch.onnx.stack_trace": STACK,
                "pkg.torch.onnx.class_hierarchy": "['someone.secret.Model']",
                "pkg.onnxscript.rewriter.rule_name": "secret",
                "their.own": STACK,
                "author": "they",
            }
        )
        target.doc_string = OLDER if target is nodes[0] else STACK
    nodes[0].metadata_props["namespace"] = "secret.Model"
    nodes[0].metadata_props["mpqc.block"] = "block{index=0}"
    found.metadata_props["namespace"] = "theirs"
    nodes[1].doc_string = "what it is for"
    write_model(found, tmp_path / "model.onnx")
    assert b"secret" not in (tmp_path / "model.onnx").read_bytes()
    again = read_model(tmp_path / "model.onnx")
    assert dict(again.metadata_props) == {"author": "they", "namespace": "theirs"}
    assert dict(again.graph[0].metadata_props) == {
        "author": "they",
        "mpqc.block": "block{index=0}",
    }
    assert again.graph[1].doc_string == "what it is for"
    assert nodes[0].metadata_props["pkg.torch.onnx.stack_trace"] == STACK

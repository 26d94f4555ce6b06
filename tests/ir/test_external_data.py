from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mpqc.ir import InputError, read_model

from .texts import proto, ramp

GRAPH = "g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }"
SIZE = 64 * 64 * 4


def external(**entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": 0, "length": SIZE, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def as_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def as_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))


def in_subgraph(model: onnx.ModelProto, tensor: TensorProto) -> None:
    as_initializer(model, onnx.numpy_helper.from_array(ramp(64, 64), "w"))
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [64, 64])
    copy = helper.make_node("Identity", ["v"], ["o"])
    inner = TensorProto()
    inner.CopyFrom(tensor)
    inner.name = "v"
    branch = helper.make_graph([copy], "b", [], [out], [inner])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    as_initializer(model, onnx.numpy_helper.from_array(ramp(64, 64), "w"))
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    body = helper.make_function(
        "own", "F", [], ["k"], [constant], [helper.make_opsetid("", 17)]
    )
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("F", [], ["z"], domain="own"))


def in_sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    as_initializer(model, onnx.numpy_helper.from_array(ramp(64, 64), "w"))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


PLACES: Mapping[str, Callable[[onnx.ModelProto, TensorProto], None]] = {
    "initializer": as_initializer,
    "constant": as_constant,
    "subgraph": in_subgraph,
    "function": in_function,
    "sparse": in_sparse,
}


def write(folder: Path, tensor: TensorProto, place: str = "initializer") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = proto(GRAPH, {})
    PLACES[place](model, tensor)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_model(path)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_weights_beside_the_model_are_read(tmp_path: Path, place: str) -> None:
    path = write(tmp_path, external(location="sub/w.bin", offset=64), place)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/w.bin").write_bytes(bytes(64) + ramp(64, 64).tobytes())
    graph = read_model(path).graph
    tensor = (
        graph.initializers["w"].const_value
        if place == "initializer"
        else graph[0].attributes["value"].as_tensor()
    )
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), ramp(64, 64))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    "location", ["../secret.bin", "a/../../secret.bin", "{abs}", "C:\\x", "..\\secret.bin", ""]
)
def test_locations_that_leave_the_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, location: str, bare: bool
) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(SIZE))
    path = write(
        tmp_path / "m", external(location=location.replace("{abs}", str(secret))), place
    )
    if bare:
        monkeypatch.chdir(path.parent)
        path = Path("model.onnx")
    message = refused(path)
    assert "unsafe external data location" in message or "sparse" in message


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(SIZE))
    path = write(tmp_path / "m", external())
    (tmp_path / "m/w.bin").symlink_to(tmp_path / "secret.bin")
    assert "leads out of the model's folder" in refused(path)
    deep = write(tmp_path / "n", external(location="up/secret.bin"))
    (tmp_path / "n/up").symlink_to(tmp_path)
    assert "leads out of the model's folder" in refused(deep)


def test_the_hub_cache_and_hard_links_are_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo/blobs", tmp_path / "repo/snapshots/1/onnx"
    real = write(blobs, external())
    real.rename(blobs / "aaaa")
    (blobs / "bbbb").write_bytes(ramp(64, 64).tobytes())
    os.link(blobs / "bbbb", tmp_path / "deduplicated")
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to("../../../blobs/aaaa")
    (snapshot / "w.bin").symlink_to("../../../blobs/bbbb")
    assert read_model(snapshot / "model.onnx").graph.initializers["w"].const_value is not None


def test_a_linked_model_finds_its_data_at_its_real_place(tmp_path: Path) -> None:
    real = write(tmp_path / "m", external())
    (tmp_path / "m/w.bin").write_bytes(bytes(SIZE))
    (tmp_path / "link.onnx").symlink_to(real)
    assert read_model(tmp_path / "link.onnx").graph.initializers["w"].const_value is not None


def test_a_missing_file_is_named_with_what_it_holds(tmp_path: Path) -> None:
    message = refused(write(tmp_path, external()))
    assert "'w.bin' is missing" in message
    assert "holds 1 of" in message
    assert "'w'" in message


@pytest.mark.timeout(20)
def test_special_files_do_not_hang(tmp_path: Path) -> None:
    path = write(tmp_path, external())
    os.mkfifo(tmp_path / "w.bin")
    assert "not a regular file" in refused(path)
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").mkdir()
    assert "not a regular file" in refused(path)


@pytest.mark.parametrize(
    ("entries", "cause"),
    [
        ({"offset": SIZE}, "ends at byte"),
        ({"offset": -4}, "not a byte count"),
        ({"offset": 10**18}, "ends at byte"),
        ({"length": SIZE * 2}, "needs"),
        ({"length": 0}, "needs"),
        ({"length": -1}, "not a byte count"),
        ({"length": "1e9"}, "not a byte count"),
        ({"offset": 4}, "ends at byte"),
    ],
)
def test_extents_have_to_fit(tmp_path: Path, entries: dict[str, object], cause: str) -> None:
    path = write(tmp_path, external(**entries))
    (tmp_path / "w.bin").write_bytes(bytes(SIZE))
    assert cause in refused(path)


def test_entries_given_twice_are_refused(tmp_path: Path) -> None:
    tensor = external()
    tensor.external_data.add(key="location", value="other.bin")
    assert "twice" in refused(write(tmp_path, tensor))


def test_an_empty_data_file_is_too_short(tmp_path: Path) -> None:
    path = write(tmp_path, external())
    (tmp_path / "w.bin").touch()
    assert "has 0 bytes" in refused(path)

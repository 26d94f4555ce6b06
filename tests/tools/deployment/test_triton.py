"""A model repository, checked by Triton's own schema and by a server of its protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import mpqc
from mpqc.backend.onnxruntime.runner import open_session
from mpqc.frontend.model_source import locate
from mpqc.ir import InputError, UsageError
from mpqc.tools.cli import main
from mpqc.tools.deployment.triton import _config, _tensor
from mpqc.tools.evaluate import evaluate
from mpqc.tools.inspection import inspect_file
from mpqc.tools.resume import opt

from ...e2e import models
from ...e2e.compiled import noise
from .. import tiny_models
from .snippets import LOADERS, blocks, run_code

pytestmark = [pytest.mark.ort, pytest.mark.timeout(120)]
with_schema = pytest.mark.skipif(
    not LOADERS.is_file(), reason="needs tritonclient: `make loaders` installs it"
)
FEW: dict[str, Any] = {"samples": 4, "sequence_length": 16, "preset": "fast"}
_READ = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

config = text_format.Parse(open(sys.argv[1], encoding="utf-8").read(), ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
"""
_NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))


def read(config: Path) -> dict[str, Any]:
    """Returns a config as Triton reads it: by the schema that its client ships."""
    found: dict[str, Any] = json.loads(
        run_code(_READ, config.parent, str(LOADERS), str(config))
    )
    return found


def made(model: Path, tmp_path: Path, **more: Any) -> Path:
    given = {"budget": 8.5, "output": tmp_path / "out", "for_": "triton", **FEW}
    return mpqc.compile(model, random_calibration=True, **given | more).output


def dims(entry: dict[str, Any]) -> list[int]:
    return [int(one) for one in entry["dims"]]


@contextmanager
def serving(home: Path, config: dict[str, Any]) -> Iterator[str]:
    """Serves one model as Triton does: requests that do not fit the config are refused."""
    batched = int(config.get("max_batch_size", 0)) > 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            given = json.loads(self.rfile.read(size))["inputs"]
            assert self.path == f"/v2/models/{config['name']}/infer"
            feeds = {}
            for one, entry in zip(given, config["input"], strict=True):
                shape = one["shape"][1:] if batched else one["shape"]
                assert one["name"] == entry["name"]
                assert one["datatype"] == entry["data_type"].removeprefix("TYPE_")
                wanted = dims(entry)
                assert len(shape) == len(wanted)
                assert all(dim in (-1, got) for dim, got in zip(wanted, shape, strict=True))
                array = np.array(one["data"], _NUMPY[entry["data_type"]])
                feeds[one["name"]] = array.reshape(one["shape"])
            with open_session(home / "1" / "model.onnx") as session:
                found = session.run(feeds)
            answer = [{"name": key, "shape": list(one.shape)} for key, one in found.items()]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"outputs": answer}).encode())

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@with_schema
@pytest.mark.parametrize(
    ("make", "most", "taken", "given", "printed"),
    [
        (tiny_models.vector_model, 8, [64], [64], "y [1, 64]"),
        (tiny_models.language_model, 8, [-1], [-1, 256], "logits [1, 16, 256]"),
        (models.with_control_flow, 0, [-1, 1, 64], [-1, 1, 128], "y [1, 1, 128]"),
    ],
)
def test_triton_reads_the_config_and_takes_the_request(
    make: Any, most: int, taken: list[int], given: list[int], printed: str, tmp_path: Path
) -> None:
    out = made(make(tmp_path / "my model.onnx"), tmp_path)
    config = read(out / "my_model" / "config.pbtxt")
    assert config["name"] == "my_model"
    assert config["backend"] == "onnxruntime"
    assert int(config.get("max_batch_size", 0)) == most
    assert ("dynamic_batching" in config) == (most > 0)
    assert dims(config["input"][0]) == taken
    assert dims(config["output"][0]) == given
    assert config["instance_group"] == [{"kind": "KIND_CPU"}]
    (code,) = blocks(out, "python")
    with serving(out / "my_model", config) as address:
        assert printed in run_code(code.replace("localhost:8000", address), out)


def test_only_the_model_is_a_folder_of_the_repository(tmp_path: Path) -> None:
    folder = tiny_models.language_folder(tmp_path / "net")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    out = made(folder, tmp_path)
    assert [one.name for one in out.iterdir() if one.is_dir()] == ["net"]
    assert {one.name for one in (out / "net").iterdir()} == {"1", "config.pbtxt"}
    assert (out / "net" / "1" / "1_Pooling" / "config.json").is_file()
    facts = json.loads((out / "mpqc.json").read_text())
    assert facts["model"] == "net/1/model.onnx"
    assert set(facts["files"]) == {
        one.relative_to(out).as_posix()
        for one in out.rglob("*")
        if one.is_file() and one.name != "mpqc.json"
    }


def test_the_other_commands_read_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.vector_model(tmp_path / "vector.onnx")
    result = mpqc.compile(
        model,
        budget=8.5,
        output=tmp_path / "out",
        for_="triton",
        random_calibration=True,
        **FEW,
    )
    assert result.model == result.output / "vector" / "1" / "model.onnx"
    found = inspect_file(result.output)
    assert found.storage.bits_per_weight == pytest.approx(result.got)
    arrays = noise(model, tmp_path / "noise.npz", 4, 16, seed=9)
    assert (evaluate(model, result.output, [arrays]).cosine or 0) > 0.99
    assert main(["lint", str(result.output)]) == 0
    assert "0 errors" in capsys.readouterr().out
    assert locate(result.output / "vector").onnx == result.model


def test_the_newest_version_is_taken(tmp_path: Path) -> None:
    for name in ("net/9/model.onnx", "net/10/model.onnx", "net/1x/model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    assert locate(tmp_path).onnx == tmp_path / "net/10/model.onnx"
    (tmp_path / "other/1").mkdir(parents=True)
    (tmp_path / "other/1/model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="several ONNX files"):
        locate(tmp_path)


@with_schema
def test_names_of_others_stay_strings(tmp_path: Path) -> None:
    path = tiny_models.vector_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    name = 'x" } ] é\n\\'
    model.graph.node[0].input[0] = model.graph.input[0].name = name
    onnx.save(model, path)
    out = made(path, tmp_path)
    config = read(out / "model" / "config.pbtxt")
    assert config["input"][0]["name"] == name
    assert len(config["input"]) == 1
    (code,) = blocks(out, "python")
    with serving(out / "model", config) as address:
        assert "y [1, 64]" in run_code(code.replace("localhost:8000", address), out)


@with_schema
def test_scalars_and_accelerators(tmp_path: Path) -> None:
    one = _tensor("one", "tensor(float)", ("N",), 1)
    half = _tensor("half", "tensor(float16)", ("N", None, 3), 3)
    path = tmp_path / "config.pbtxt"
    path.write_text(_config("net", [one], [half], "tensorrt"))
    config = read(path)
    assert config["input"][0]["dims"] == ["1"]
    assert config["input"][0]["reshape"] == {}
    assert config["output"][0] == {
        "name": "half",
        "data_type": "TYPE_FP16",
        "dims": ["-1", "3"],
    }
    accelerators = config["optimization"]["execution_accelerators"]
    assert accelerators == {"gpu_execution_accelerator": [{"name": "tensorrt"}]}
    assert config["instance_group"] == [{"kind": "KIND_GPU"}]


def test_sequences_are_refused(tmp_path: Path) -> None:
    path = tiny_models.vector_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["many"]))
    model.graph.output.append(
        helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, ["batch", 64])
    )
    onnx.save(model, path)
    with pytest.raises(UsageError, match="'many' is none"):
        made(path, tmp_path)


def test_a_dump_resumes_to_the_same_repository(tmp_path: Path) -> None:
    model = tiny_models.vector_model(tmp_path / "vector.onnx")
    out = made(model, tmp_path, dump_after_each=tmp_path / "dumps")
    dump = next((tmp_path / "dumps").glob("*allocate-bits.onnx"))
    again = opt(dump, output=tmp_path / "again").output
    assert again is not None
    for one in out.rglob("*"):
        if one.is_file() and one.name not in ("mpqc.json", "report.html"):
            other = again / one.relative_to(out)
            assert other.read_bytes() == one.read_bytes(), one


def test_a_size_bounds_the_whole_repository(tmp_path: Path) -> None:
    model = tiny_models.vector_model(tmp_path / "vector.onnx")
    out = made(model, tmp_path, budget="60kB")
    assert sum(one.stat().st_size for one in out.rglob("*") if one.is_file()) <= 60_000

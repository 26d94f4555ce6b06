"""Dumps: written after every pass, read anywhere, gone on from; damaged ones refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from mpqc.ir import Capabilities, InputError, UsageError, read_model, write_model
from mpqc.ir.sealed_file import write_sealed
from mpqc.passes.engine.pipeline.base import PassContext, Runner
from mpqc.passes.engine.pipeline.dump import RUN, Dump, read_dump
from mpqc.passes.engine.pipeline.instruments import DumpAfterEach, StopAfter
from mpqc.passes.engine.pipeline.pipeline import Pipeline

TEXT = "normalize,partition-blocks,normalize"
SETTINGS = {"model": "/somewhere/model.onnx", "seed": 7, "rate": np.float32(0.5)}
GRAPH = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 64] x) => (float[N, 64] y) {
  i = Identity(w)
  a = MatMul(x, i)
  b = Relu(a)
  y = MatMul(b, v)
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(0)
    for name in "wv":
        weight = rng.standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(proto, tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    made = PassContext(cast(Runner, None), cast(Capabilities, None), tmp_path)
    stats = {"w/0/hessian": np.eye(64, dtype=np.float32)}
    write_sealed(tmp_path / "cached.safetensors", "cached", stats, {})
    made.arrays.mount(tmp_path / "cached.safetensors")
    made.arrays.put("w/order", np.arange(64, dtype=np.int32))
    made.report["early"] = {"kl": np.float64(0.25)}
    return made


@pytest.fixture
def folder(source: Path, context: PassContext, tmp_path: Path) -> Path:
    """The dumps of a whole run, moved away from where they were written."""
    dumping = DumpAfterEach(tmp_path / "dumps", TEXT, SETTINGS)
    Pipeline.parse(TEXT).run(read_model(source), context, [dumping])
    names = ["000_normalize.onnx", "001_partition-blocks.onnx", "002_normalize.onnx"]
    assert [path.name for path in dumping.written] == names
    (tmp_path / "cached.safetensors").unlink()
    (tmp_path / "elsewhere").mkdir()
    return Path(shutil.move(tmp_path / "dumps", tmp_path / "elsewhere" / "moved"))


def go_on(dump: Dump, scratch: Path) -> bytes:
    """Runs what remains; returns the bytes of the result."""
    context = PassContext(cast(Runner, None), cast(Capabilities, None), scratch, dump.arrays)
    Pipeline.parse(dump.pipeline).run(dump.model, context, first=dump.position)
    write_model(dump.model, scratch / "out.onnx")
    return (scratch / "out.onnx").read_bytes() + (scratch / "out.onnx.data").read_bytes()


def test_any_dump_leads_to_the_same_bytes(
    folder: Path, source: Path, context: PassContext, tmp_path: Path
) -> None:
    model = read_model(source)
    Pipeline.parse(TEXT).run(model, context)
    write_model(model, tmp_path / "out.onnx")
    whole = (tmp_path / "out.onnx").read_bytes() + (tmp_path / "out.onnx.data").read_bytes()
    for path in sorted(folder.glob("*.onnx")):
        assert go_on(read_dump(path), tmp_path) == whole


def test_a_dump_knows_everything(folder: Path) -> None:
    dump = read_dump(folder / "001_partition-blocks.onnx")
    assert (dump.pipeline, dump.position, dump.remaining) == (TEXT, 2, "normalize")
    assert dump.settings == {"model": "/somewhere/model.onnx", "seed": 7, "rate": 0.5}
    assert dump.report == {"early": {"kl": 0.25}}
    np.testing.assert_array_equal(dump.arrays.get("w/0/hessian"), np.eye(64))
    np.testing.assert_array_equal(dump.arrays.get("w/order"), np.arange(64))
    assert [path.parent for path in dump.arrays.files()] == [folder]
    assert list(dump.arrays.in_memory()) == ["w/order"]


def test_tensors_and_stats_are_stored_once(folder: Path) -> None:
    assert len(list((folder / "data").iterdir())) == 2
    assert len(list(folder.glob("stats-*"))) == 1
    assert not list(folder.glob("*.tmp"))


def test_a_run_can_go_on_in_its_own_folder(folder: Path, tmp_path: Path) -> None:
    dump = read_dump(folder / "000_normalize.onnx")
    context = PassContext(cast(Runner, None), cast(Capabilities, None), tmp_path, dump.arrays)
    before = sorted(path.name for path in folder.iterdir())
    dumping = [DumpAfterEach(folder, dump.pipeline, dump.settings)]
    Pipeline.parse(TEXT).run(dump.model, context, dumping, first=dump.position)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_folder_of_another_run_is_refused(
    folder: Path, source: Path, context: PassContext
) -> None:
    dumping = DumpAfterEach(folder, "normalize", SETTINGS)
    with pytest.raises(UsageError, match="holds the dumps of another run"):
        Pipeline.parse("normalize").run(read_model(source), context, [dumping])


def test_stopping_leaves_a_dump_to_go_on_from(
    source: Path, context: PassContext, tmp_path: Path
) -> None:
    dumping = DumpAfterEach(tmp_path / "dumps", TEXT, {})
    instruments = [StopAfter("partition-blocks"), dumping]
    assert Pipeline.parse(TEXT).run(read_model(source), context, instruments) == 2
    assert read_dump(dumping.written[-1]).remaining == "normalize"


def change_run(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        run = json.loads((folder / RUN).read_text())
        change(run)
        (folder / RUN).write_text(json.dumps(run))

    return damage


def change_entry(**fields: Any) -> Callable[[Path], Any]:
    return change_run(lambda run: run["dumps"]["000_normalize.onnx"].update(fields))


def truncate(pattern: str) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content[: len(content) // 2])

    return damage


def flip(pattern: str) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return damage


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / RUN).unlink(), "no run.json"),
    (lambda folder: (folder / RUN).write_text("{"), "is not JSON"),
    (lambda folder: (folder / RUN).write_text("[1]"), "expected an object"),
    (lambda folder: (folder / RUN).write_text("[" * 100_000), "is not JSON"),
    (lambda folder: (folder / RUN).write_bytes(b"\xff\xfe"), "is not JSON"),
    (change_run(lambda run: run.pop("pipeline")), "'pipeline' is missing"),
    (change_run(lambda run: run.update(format=99)), "has format 99"),
    (change_run(lambda run: run["dumps"].clear()), "knows no dump"),
    (
        change_run(lambda run: run["dumps"].update({"000_normalize.onnx": 3})),
        "expected an object",
    ),
    (change_entry(position=2), "disagree"),
    (change_entry(position=-1), "disagree"),
    (change_entry(position=True), "wrong kind"),
    (change_entry(arrays="../x.safetensors"), "outside the folder"),
    (change_entry(mounted=["/etc/passwd"]), "outside the folder"),
    (change_entry(mounted=[3]), "outside the folder"),
    (change_entry(mounted=["stats-0.safetensors"]), "is missing"),
    (truncate("stats-*"), "is damaged"),
    (truncate("000_normalize.safetensors"), "is damaged"),
    (truncate("000_normalize.onnx"), "."),
    (truncate("data/*"), "."),
    (flip("data/*"), "does not match its name"),
    (flip("000_normalize.safetensors"), "checksum"),
    (flip("stats-*"), "checksum"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_refused(damage: Callable[[Path], Any], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        read_dump(folder / "000_normalize.onnx")


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    arrays = folder / "000_normalize.safetensors"
    arrays.rename(tmp_path / "outside.safetensors")
    arrays.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(InputError, match="is missing"):
        read_dump(folder / "000_normalize.onnx")


def test_the_final_graph_reads_as_written(folder: Path) -> None:
    model = read_dump(folder / "002_normalize.onnx").model
    assert isinstance(model, ir.Model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "MatMul"]

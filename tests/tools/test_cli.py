"""Bad input through the command line: exit code, one line of cause, hint, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mpqc.ir import MachineError
from mpqc.tools.cli import main

from .tiny_models import WIDTH, language_folder, vector_model

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, words: list[str | Path], code: int) -> str:
    """Runs a command that must fail with ``code``; returns what it said."""
    assert main([str(word) for word in words]) == code
    seen = capsys.readouterr()
    lines = [line for line in seen.err.splitlines() if line.startswith("mpqc: ")]
    assert len(lines) == 1
    assert "Traceback" not in seen.err
    assert seen.out == ""
    return seen.err


def compile_words(model: Path, output: Path, *more: str | Path) -> list[str | Path]:
    return ["compile", model, "--budget", "4", "-o", output, "--random-calibration", *more]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return vector_model(tmp_path / "in" / "vector.onnx")


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "random": (bytes(range(7, 256)) * 20, ""),
    "pickle": (b"\x80\x04\x95\x10" + bytes(40), "pickle"),
    "zip": (b"PK\x03\x04" + bytes(40), ""),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(40), "GGUF"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "LFS"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "safetensors": (
        b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{"dtype":"F32"}}',
        "safetensors",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("command", ["compile", "inspect"])
def test_files_of_other_kinds(
    command: str, kind: str, tmp_path: Path, capsys: Capture
) -> None:
    content, word = BROKEN[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    output = tmp_path / "out"
    words: list[str | Path] = ["inspect", path]
    if command == "compile":
        words = compile_words(path, output)
    assert word in refused(capsys, words, 3)
    assert not output.exists()
    assert path.read_bytes() == content


def test_truncated(model: Path, tmp_path: Path, capsys: Capture) -> None:
    model.write_bytes(model.read_bytes()[:-1000])
    refused(capsys, compile_words(model, tmp_path / "out"), 3)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "missing.bin"])
def test_external_data_that_is_missing_or_escapes(
    location: str,
    model: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(WIDTH * 128 * 4))
    proto = onnx.load(model)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model.write_bytes(proto.SerializeToString())
    refused(capsys, compile_words(model, tmp_path / "out"), 3)
    monkeypatch.chdir(model.parent)  # a bare file name must not switch checks off
    refused(capsys, compile_words(Path(model.name), tmp_path / "out"), 3)


def test_nan_weights(model: Path, tmp_path: Path, capsys: Capture) -> None:
    proto = onnx.load(model)
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[3, 3] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "first"))
    model.write_bytes(proto.SerializeToString())
    assert "first" in refused(capsys, compile_words(model, tmp_path / "out"), 3)


def test_quantized_already(model: Path, tmp_path: Path, capsys: Capture) -> None:
    proto = onnx.load(model)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    proto.graph.node.append(
        helper.make_node("QuantizeLinear", ["y", "scale"], ["q"], "quantize")
    )
    model.write_bytes(proto.SerializeToString())
    assert "quantized" in refused(capsys, compile_words(model, tmp_path / "out"), 3)


@pytest.mark.parametrize("budget", ["0", "nan", "100", "-1", "3,5", "many"])
def test_impossible_budgets(budget: str, model: Path, tmp_path: Path, capsys: Capture) -> None:
    words: list[str | Path] = ["compile", model, "--budget", budget, "-o", tmp_path / "out"]
    refused(capsys, words, 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["complie", "m.onnx"], "did you mean 'compile'?"),
        (["compile", "m.onnx", "--budgt", "3"], "did you mean '--budget'?"),
        (["compile", "m.onnx"], "example: mpqc compile"),
        (["inspect"], "example: mpqc inspect"),
        (["inspect", "a.onnx", "b.onnx"], "example: mpqc inspect"),
        (["compile", "m.onnx", "--budget", "3", "--target", "ort-cpo"], "ort-cpu"),
        (["compile", "m.onnx", "--budget", "3", "--samples", "0"], ""),
        (["compile", "m.onnx", "--budget", "3", "--file-budget", "3"], ""),
        (["compile", "m.onnx", "--budget", "3", "-p", "allocate-bits,no-pass"], ""),
        (["compile", "m.onnx", "--budget", "3", "-p", "normalise,allocate-bits"], "normalize"),
        (["compile", "m.onnx", "--budget", "3", "-p", "normalize"], ""),
        (["compile", "m.onnx", "--budget", "3", "-p", "allocate-bits{budgt=3}"], "budget"),
    ],
)
def test_mistyped_words(words: list[str | Path], hint: str, capsys: Capture) -> None:
    assert hint in refused(capsys, words, 2)


def test_unknown_pass_to_stop_after(model: Path, tmp_path: Path, capsys: Capture) -> None:
    words = compile_words(
        model, tmp_path / "out", "--stop-after", "calibrat", "--samples", "2"
    )
    assert "calibrate" in refused(capsys, words, 2)


def _npz(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "samples.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path

    return write


GOOD = np.zeros((4, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (_npz(X=GOOD), "known: x"),
        (_npz(x=GOOD, more=GOOD), "no input 'more'"),
        (_npz(x=GOOD[:, :5]), "shape"),
        (_npz(x=GOOD[None, None]), "shape"),
        (_npz(x=GOOD.astype(np.int32)), "float32"),
        (_npz(x=GOOD * np.nan), "NaN"),
        (_npz(x=GOOD[:0]), "no samples"),
        (_npz(x=np.array([{}], dtype=object)), "objects"),
    ],
)
def test_wrong_calibration_arrays(
    write: Callable[[Path], Path], word: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    samples = write(tmp_path)
    words: list[str | Path] = ["compile", model, "--budget", "4", "-o", tmp_path / "out"]
    assert word in refused(capsys, [*words, "--calibration", samples], 3)
    assert not (tmp_path / "out").exists()


def test_nothing_to_calibrate_on(model: Path, tmp_path: Path, capsys: Capture) -> None:
    words: list[str | Path] = ["compile", model, "--budget", "4", "-o", tmp_path / "out"]
    assert "--random-calibration" in refused(capsys, words, 3)
    assert "does not exist" in refused(
        capsys, [*words, "--calibration", tmp_path / "no.txt"], 3
    )


def test_existing_output_is_left_alone(model: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious").write_text("mine")
    assert "--overwrite" in refused(capsys, compile_words(model, output), 2)
    assert (output / "precious").read_text() == "mine"


def test_output_that_is_the_input(tmp_path: Path, capsys: Capture) -> None:
    folder = language_folder(tmp_path / "model")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for output in (folder, tmp_path):
        words: list[str | Path] = ["compile", folder, "--budget", "4", "-o", output]
        assert "replace the input" in refused(capsys, [*words, "--overwrite"], 2)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "out/model.onnx"), 4, "No space left"),
        (MemoryError(), 4, "memory"),
        (MachineError("no such provider"), 4, "no such provider"),
        (ValueError("oops"), 70, "oops"),
    ],
)
def test_faults_of_the_machine_and_our_own(
    error: BaseException,
    code: int,
    word: str,
    model: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("mpqc.tools.compilation.check_finite", fail)
    assert word in refused(capsys, compile_words(model, tmp_path / "out"), code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_json_on_failure_is_one_object(tmp_path: Path, capsys: Capture) -> None:
    assert main(["inspect", str(tmp_path / "no.onnx"), "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["error"]["code"] == "input"
    assert "does not exist" in answer["error"]["message"]
    assert main(["inspect", "--jsn", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_inspect_tells_sizes(model: Path, capsys: Capture) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bits_per_weight"] == 32.0
    assert facts["weights"] == 2 * WIDTH * 128
    assert facts["file_bytes"] == model.stat().st_size
    assert main(["inspect", str(model)]) == 0
    assert "first" in capsys.readouterr().out


def test_names_cannot_move_the_cursor(model: Path, capsys: Capture) -> None:
    proto = onnx.load(model)
    evil = "\x1b[2Jfirst\u202e[red]"
    proto.graph.initializer[0].name = evil
    proto.graph.node[0].input[1] = evil
    model.write_bytes(proto.SerializeToString())
    assert main(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[2Jfirst\u202e[red]" in shown


def test_help_and_version(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    assert "exit codes" in capsys.readouterr().out
    assert main([]) == 0
    assert main(["compile", "--help"]) == 0
    assert "--random-calibration" in capsys.readouterr().out
    assert main(["--version"]) == 0


def test_folders_without_a_model(tmp_path: Path, capsys: Capture) -> None:
    assert "no model" in refused(capsys, ["inspect", tmp_path], 3)
    vector_model(tmp_path / "a.onnx")
    vector_model(tmp_path / "b.onnx")
    assert "a.onnx, b.onnx" in refused(capsys, ["inspect", tmp_path], 3)


HOSTILE = {
    "code": ({"architectures": ["X"], "auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    "attention": ({"_attn_implementation_internal": "evil/kernel"}, "_attn_implementation"),
    "nested": ({"text_config": {"auto_map": {"AutoModel": "evil.Model"}}}, "auto_map"),
    "pickle": ({"architectures": ["BertModel"]}, "pickle"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantized"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_hugging_face_folders(kind: str, tmp_path: Path, capsys: Capture) -> None:
    settings, word = HOSTILE[kind]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert word in refused(capsys, ["export", folder, "-o", tmp_path / "out"], 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

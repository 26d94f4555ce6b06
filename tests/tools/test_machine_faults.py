"""What machines and libraries do to a command: signals, hostile names, odd paths and files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mpqc.backend.onnxruntime.runner import open_session
from mpqc.ir import InputError, UsageError
from mpqc.tools.cli import main
from mpqc.tools.comparison.table import report
from mpqc.tools.option_fields import utf8_path
from mpqc.tools.progress import EscapedStream, plain

from .tiny_models import vector_model

EVIL = "\x1b[2Jname\u202e"
SHOWN = r"\x1b[2Jname\u202e"
EXPORT = """
import logging, os, signal, sys
from mpqc.frontend import hugging_face
from mpqc.tools import cli

class Finalizer:
    def __del__(self):  # what is raised here is printed with its frames, and lost
        os.kill(os.getpid(), signal.SIGTERM)
        os.getpid()

def export_folder(folder, stage, say, *, standard):
    (stage / "half").write_text("half")
    logging.getLogger("library").warning("about \\x1b[2J")
    {fate}
    return "torch-export"

hugging_face.export_folder = export_folder
sys.argv = ["mpqc", "export", "model", "-o", "out"]
sys.exit(cli.main())
"""


def export(folder: Path, fate: str) -> subprocess.CompletedProcess[str]:
    """Runs ``mpqc export`` with an exporter that logs, and meets a fate half way."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    words = [sys.executable, "-c", EXPORT.replace("{fate}", fate)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)


def test_termination_ends_the_process_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = export(tmp_path, "Finalizer()")
    assert done.returncode == 143
    *_, last = done.stderr.splitlines()
    assert last == "mpqc: terminated; what was not finished has been removed"
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_logs_and_errors_of_libraries_cannot_move_the_cursor(tmp_path: Path) -> None:
    done = export(tmp_path, 'raise ValueError("at \\x1b[31m")')
    assert done.returncode == 70
    assert r"about \x1b[2J" in done.stderr
    assert r"ValueError: at \x1b[31m" in done.stderr
    assert "\x1b" not in done.stderr


def test_an_escaped_stream_keeps_lines_and_words() -> None:
    below = io.StringIO()
    stream: Any = EscapedStream(below)
    print("größer", EVIL, "\tend", file=stream)
    stream.writelines(["a\n", "\r"])
    assert below.getvalue() == f"größer {SHOWN} \\tend\na\n\\r"
    assert plain(EVIL) == SHOWN


@pytest.mark.ort
def test_the_runtime_logs_no_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], EVIL)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [1]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M"])]
    graph = helper.make_graph([node], "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    feeds = {"x": np.zeros(3, np.float32), "shape": np.array([7])}
    with open_session(tmp_path / "model.onnx") as session, pytest.raises(InputError):
        session.run(feeds)
    assert "\x1b" not in capfd.readouterr().err


def test_a_comparison_shows_names_as_text() -> None:
    given = {
        "model": {"name": EVIL, "weights": 1},
        "target": "ort-cpu",
        "calibration": {"source": EVIL},
        "text": {"samples": 1, "files": [EVIL]},
    }
    shown = report([], given)
    assert shown.count(SHOWN) == 3
    assert "\x1b" not in shown


def test_paths_that_are_not_utf8_are_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    inside = vector_model(odd / "model.onnx")
    good = vector_model(tmp_path / "good.onnx")
    (tmp_path / "link").symlink_to(odd)
    bad: list[list[str | Path]] = [
        ["compile", inside, "--budget", "4", "--random-calibration", "-o", tmp_path / "out"],
        ["compile", good, "--budget", "4", "--random-calibration", "-o", odd / "out"],
        [
            "compile",
            good,
            "--budget",
            "4",
            "--random-calibration",
            "-o",
            tmp_path / "link/out",
        ],
        ["compile", good, "--budget", "4", "--calibration", odd, "-o", tmp_path / "out"],
        ["inspect", inside],
        ["eval", good, inside, "--text", odd],
        ["export", odd, "-o", tmp_path / "out"],
        ["opt", inside, "-p", "normalize"],
        ["compare", good, "--text", good, "-o", odd / "out"],
    ]
    for words in bad:
        assert main([str(word) for word in words]) == 2, words
        said = capsys.readouterr().err
        assert r"m\udcff" in said
        assert "is not UTF-8" in said
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(odd)
    with pytest.raises(UsageError):
        utf8_path("out")


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "code", "word"),
    [
        (_pipe, 3, "no ordinary file"),
        (lambda path: Path("/dev/zero"), 3, "no ordinary file"),
        (lambda path: path.parent, 3, "no ordinary file"),
        ("samples = " + "9" * 5000, 2, "too many digits"),
        ("samples = " + "9" * 4000, 2, "from 1 to 100000, not that one"),
        ("samples = 0x" + "f" * 5000, 2, "from 1 to 100000, not that one"),
        ("preset = 0x" + "f" * 5000, 2, "preset wants str, not int"),
    ],
)
def test_recipes_that_are_no_recipes(
    make: str | Callable[[Path], Path],
    code: int,
    word: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "recipe.toml"
    if isinstance(make, str):
        recipe.write_text(make)
    else:
        recipe = make(recipe)
    words = ["compile", str(tmp_path / "m.onnx"), "--budget", "4", "--recipe", str(recipe)]
    assert main(words) == code
    said = capsys.readouterr().err
    assert word in said
    assert len(said) < 500


def test_help_imports_nothing_heavy() -> None:
    """Which takes a tenth of a second; NumPy alone would double it."""
    heavy = "{'numpy', 'onnx', 'onnx_ir', 'torch', 'rich', 'mpqc.ir'}"
    code = "import sys; from mpqc.tools.cli import main; main(['compile', '--help'])"
    code += f"; print('heavy:', {heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("heavy: set()\n")

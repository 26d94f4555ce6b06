"""The benchmark of other tools, with toy tools instead of them."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from mpqc.ir import InputError, MachineError, UsageError
from mpqc.tools.benchmarks.__main__ import main
from mpqc.tools.benchmarks.field import measured_form
from mpqc.tools.benchmarks.field.entry import KNOWN, Peer, read_entries
from mpqc.tools.benchmarks.field.environment import prepare
from mpqc.tools.benchmarks.field.peers.exchange import grouped_bytes

from .tiny_models import language_folder

pytestmark = pytest.mark.timeout(600)

TOY = """
import json
import onnx
from onnx import numpy_helper
from .exchange import Job

job = Job.given()
assert job.samples().shape == (2, 24) and job.samples(1).shape == (1, 24)
if job.settings["fails"]:
    raise SystemExit("the toy is broken")
model = onnx.load(job.onnx)
for one in model.graph.initializer:
    values = numpy_helper.to_array(one).round(job.settings["digits"])
    one.CopyFrom(numpy_helper.from_array(values.astype("float16").astype("float32"), one.name))
onnx.save(model, job.out / "model.onnx")
"""
DESCRIPTION = """
[toy]
title = "Toy"
module = "toy"
packages = [["nothing==1.0"]]
[[toy.entry]]
name = "one digit"
digits = 1
fails = false
[[toy.entry]]
name = "four digits"
digits = 4
fails = false
[[toy.entry]]
name = "broken"
fails = true
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A model, a text, and a description of toy tools whose environment stands already."""
    shutil.copytree(KNOWN.parent / "peers", tmp_path / "peers")
    (tmp_path / "peers" / "toy.py").write_text(TOY)
    (tmp_path / "toys.toml").write_text(DESCRIPTION)
    python = tmp_path / "venvs" / "toy" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    stamp = tmp_path / "venvs" / "toy" / "mpqc-packages.json"
    stamp.write_text(json.dumps([["nothing==1.0"]]))
    model, text = language_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("Some words to read, and some more of them.\n" * 40)
    given = ["--calibration", str(text), "--text", str(text), "-o", str(tmp_path / "out")]
    given += ["--venvs", str(tmp_path / "venvs"), "--peers", str(tmp_path / "toys.toml")]
    few = ["--samples", "2", "--eval-samples", "1", "--sequence-length", "24"]
    return ["field", str(tmp_path / "model"), "--onnx", str(model), *given, *few]


@pytest.mark.ort
def test_tools_are_measured_once_and_shown_beside_ours(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {"method": "default", "budget": 8.0, "status": "measured", "bits": 8.0, "kl": 1e-3}
    plain = {**ours, "method": "uniform", "budget": 2.25, "bits": 2.25}
    compared = tmp_path / "compare.json"
    compared.write_text(json.dumps({"measured": {"ours": ours, "plain": plain}}))
    words += ["--compared", str(compared)]
    assert main([*words, "--only", "DIGIT"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    seen = capsys.readouterr()
    assert "Toy: one digit: measured already" in seen.err
    assert "- Toy: broken: the toy is broken (exit code 1)" in seen.out
    assert "**mpqc --budget 8**" in seen.out
    assert "2.25" not in seen.out
    found = json.loads((tmp_path / "out" / "field.json").read_text())["measured"]
    coarse, fine = found["Toy: one digit"], found["Toy: four digits"]
    assert coarse["kl"] > 10 * fine["kl"] > 0
    assert coarse["file_bits"] == 32
    assert coarse["bits"] == 16  # floats count as 16 bits at best
    assert f"| 0.001 | {coarse['kl'] / 1e-3:.2f} |" in seen.out
    ET.parse(tmp_path / "out" / "field.svg")
    assert not list((tmp_path / "out" / "work").iterdir())


def test_a_word_that_names_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--only", "gptq"]) == UsageError("").exit_code
    assert "toy-one-digit" in capsys.readouterr().err


def test_a_broken_description(tmp_path: Path) -> None:
    (tmp_path / "peers.toml").write_text('[toy]\ntitle = "Toy"\n')
    with pytest.raises(InputError, match="packages"):
        read_entries(tmp_path / "peers.toml")


def test_what_stands_in_the_description_can_run() -> None:
    entries = read_entries()
    assert len({entry.peer.name for entry in entries}) >= 5
    labels = [entry.label(rest) for entry in entries for rest in entry.rest]
    assert len(labels) == len(set(labels))
    assert len(entries) == len({entry.folder for entry in entries})
    for entry in entries:
        assert (entry.peer.home / "peers" / f"{entry.peer.module}.py").is_file()
        assert "torch==" in entry.peer.packages[0][0]


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    peer = Peer("toy", "Toy", tmp_path, "toy", (("no such requirement",),))
    with pytest.raises(MachineError, match="exit code"):
        prepare(peer, tmp_path / "venv", tmp_path / "logs" / "pip.log")
    assert not (tmp_path / "venv" / "mpqc-packages.json").exists()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An original of three parameters, and an export that does nothing."""

    def export(folder: Path, output: Path) -> Any:
        return SimpleNamespace(output=folder)

    monkeypatch.setattr(measured_form, "export_folder", export)
    for name in ("original", "made", "work"):
        (tmp_path / name).mkdir()
    noise = torch.Generator().manual_seed(0)
    tensors = {
        "table": torch.randn(16, 64, generator=noise),
        "body": torch.randn(8, 128, generator=noise),
        "norm": torch.ones(64),
    }
    save_file(tensors, tmp_path / "original" / "model.safetensors")
    hand_over(tmp_path, {"body": torch.zeros(8, 128)}, {"body": 512.0})
    return tmp_path


def hand_over(
    folder: Path, weights: dict[str, torch.Tensor], stored: dict[str, float]
) -> None:
    save_file(weights, folder / "made" / "weights.safetensors")
    (folder / "made" / "stored.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(("rest", "table"), [(16, 16.0), (8, 8.25), (4, 4.25)])
def test_weights_are_put_back_and_counted(made: Path, rest: int, table: float) -> None:
    form = measured_form.put_back(made / "made", made / "original", rest, made / "work")
    assert form.bits == (512 * 8 + table * 16 * 64) / (16 * 64 + 8 * 128)
    before = load_file(made / "original" / "model.safetensors")
    after = load_file(form.onnx / "model.safetensors")
    assert not after["body"].any()
    assert torch.equal(after["norm"], before["norm"])
    error = float((after["table"] - before["table"]).norm() / before["table"].norm())
    assert (error == 0) if rest == 16 else (0 < error < 1.2 * 2.0 ** (2 - rest))


@pytest.mark.parametrize(
    ("weights", "stored", "said"),
    [
        ({"other": torch.zeros(1)}, {}, "'other'"),
        ({"body": torch.zeros(2, 2)}, {}, "shape"),
        ({"body": torch.full((8, 128), torch.nan)}, {}, "not finite"),
        ({}, {"body": 1.0}, "does not give it"),
    ],
)
def test_weights_of_another_model_are_refused(
    made: Path, weights: dict[str, torch.Tensor], stored: dict[str, float], said: str
) -> None:
    hand_over(made, weights, stored)
    with pytest.raises(InputError, match=said):
        measured_form.put_back(made / "made", made / "original", 16, made / "work")


def test_a_repeated_table_counts_once_at_best(tmp_path: Path) -> None:
    original = language_folder(tmp_path / "model") / "model.onnx"
    model = onnx.load(original)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), "f4"), "more"))
    (tmp_path / "made").mkdir()
    onnx.save(model, tmp_path / "made" / "model.onnx")
    weights = sum(int(np.prod(one.dims)) for one in onnx.load(original).graph.initializer)
    form = measured_form.own_file(tmp_path / "made", original)
    assert form.bits == 16 * (weights + 64 * 64) / weights
    assert form.file_bits == 2 * form.bits
    (tmp_path / "made" / "copies.json").write_text('["more"]')
    assert measured_form.own_file(tmp_path / "made", original).bits == 16


def test_bytes_of_groups() -> None:
    assert grouped_bytes(64 * 8, 4, 64) == 8 * (64 * 4 + 16) / 8
    assert grouped_bytes(64, 3, 32, zero_bits=3) == (64 * 3 + 2 * 19) / 8

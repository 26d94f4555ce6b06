"""Results that are wrong, or far worse than predicted: exit codes, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpqc.passes.engine.emission import stored
from mpqc.passes.engine.numerics import packing
from mpqc.tools.cli import main

from .tiny_models import language_folder

pytestmark = [pytest.mark.ort, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A compilation whose codes are those of other rows: exact in form, and garbage."""
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    right = packing.pack
    monkeypatch.setattr(stored, "pack", lambda *given: np.roll(right(*given), 1, axis=0))
    model, out = language_folder(tmp_path / "model"), tmp_path / "out"
    options = ["--budget", "8.6", "--preset", "fast", "--samples", "8", "--kernels", "always"]
    return ["compile", str(model), "-o", str(out), "--sequence-length", "32", *options]


def test_a_miscompilation_writes_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dumps = tmp_path / "dumps"
    assert main([*command, "--dump-after-each", str(dumps)]) == 70
    said = capsys.readouterr().err
    assert "lower-matmul-nbits: unit 'table': 'x0' at [0, 0, 0] is" in said
    assert not (tmp_path / "out").exists()
    assert not list(dumps.glob("*lower-matmul-nbits*"))


def test_far_more_loss_than_predicted_writes_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--no-validate"]) == 6
    said = capsys.readouterr().err
    assert "the result lost" in said
    assert "standard error" in said
    assert "'head'" in said
    assert "--accept-loss" in said
    assert not (tmp_path / "out").exists()


def test_a_loss_can_be_accepted(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--no-validate", "--accept-loss"]) == 0
    assert "warning: the result lost" in capsys.readouterr().err
    facts = json.loads((tmp_path / "out" / "mpqc.json").read_text())
    measured = facts["measured"]
    assert measured["excessive"]
    assert measured["kl"] - 2 * measured["standard_error"] > 10 * measured["predicted"]
    assert {one["unit"] for one in measured["blamed"]} == {"table", "up", "down", "head"}
    assert "lost" in (tmp_path / "out" / "report.html").read_text()
    assert "validation" not in facts["passes"]

"""A plain folder: its README says what is so, and the code in it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mpqc
from mpqc.ir import UsageError
from mpqc.tools.cli import main
from mpqc.tools.deployment import KINDS
from mpqc.tools.deployment.kind import find_kind
from mpqc.tools.deployment.markdown_text import code_block, code_span, escaped

from ...e2e import models
from .. import tiny_models
from .snippets import blocks, run_python

pytestmark = [pytest.mark.ort, pytest.mark.timeout(120)]

FEW: dict[str, Any] = {"samples": 4, "sequence_length": 16, "preset": "fast"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))


def test_every_kind_has_a_module() -> None:
    programs = [find_kind(name).program for name in KINDS]
    assert len(set(programs)) == len(KINDS)


@pytest.mark.parametrize(
    ("make", "printed"),
    [
        (tiny_models.language_folder, "logits (1, 16, 256)"),
        (lambda folder: tiny_models.language_model(folder / "m.onnx"), "logits (1, 8, 256)"),
        (lambda folder: tiny_models.vector_model(folder / "v.onnx"), "y (1, 64)"),
        (lambda folder: models.with_control_flow(folder / "c.onnx"), "y (1, 1, 128)"),
    ],
)
def test_the_code_in_the_readme_runs(make: Any, printed: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    result = mpqc.compile(
        model, budget=8.5, output=tmp_path / "out", random_calibration=True, **FEW
    )
    found = run_python(result.output)
    assert printed in found


def test_the_readme_says_how_good_it_is_and_how_to_make_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_models.language_folder(tmp_path / "model")
    result = mpqc.compile(folder, budget=4.5, **FEW)
    text = (result.output / "README.md").read_text()
    facts = json.loads((result.output / "mpqc.json").read_text())
    assert f"| {facts['measured']['kl']:.4g} |" in text
    assert f"{facts['got']['bits']:.3f} bits per weight" in text
    assert f"loaded and run by version {facts['versions']['onnxruntime-gpu']}" in text
    assert "noise" not in text
    (passes,) = blocks(result.output, "text")
    assert passes.replace(",\n", ",") == facts["pipeline"]
    command = blocks(result.output, "console")[-1]
    assert command == f"$ {facts['command']}"
    again = command.removeprefix("$ mpqc ").split()
    assert main([*again, "-o", "again"]) == 0
    assert (tmp_path / "again/README.md").read_text() == text


def test_names_of_others_stay_text(tmp_path: Path) -> None:
    name = "a`b|c](http:x)<img src=x>\n```\n# heading"
    folder = tiny_models.language_folder(tmp_path / name)
    result = mpqc.compile(folder, budget=8.5, output=tmp_path / "out", **FEW)
    text = (result.output / "README.md").read_text()
    assert "# heading" not in text.splitlines()
    assert "````" in text  # a fence that the name does not end
    assert run_python(result.output)


def test_markdown() -> None:
    assert escaped("a_b <i> [x](y) www.z.de") == r"a\_b \<i\> \[x\](y) www\.z.de"
    assert code_span("a`b") == "``a`b``"
    assert code_span("`") == "`` ` ``"
    assert code_span("a|b\nc") == r"`a\|b c`"
    assert code_block("````", "sh") == "`````sh\n````\n`````"


def test_an_unknown_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_models.vector_model(tmp_path / "v.onnx")
    words = ["compile", str(model), "--budget", "4", "--random-calibration"]
    assert main([*words, "--for", "genia"]) == 2
    assert "did you mean 'genai'" in capsys.readouterr().err
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('for = "trtion"\n')
    with pytest.raises(UsageError, match="unknown for 'trtion'"):
        mpqc.compile(model, budget=4, recipe=recipe)

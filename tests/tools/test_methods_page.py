"""docs/methods.md's generator, on a tiny model; the models that it makes itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from mpqc.ir import InputError, MachineError
from mpqc.tools import minilm
from mpqc.tools.benchmarks import methods
from mpqc.tools.benchmarks.__main__ import main

from .tiny_models import language_folder

pytestmark = [pytest.mark.ort, pytest.mark.timeout(240)]
TEXT = "Some words to read, and some more of them; then others, which differ.\n" * 60


def test_page_has_every_model_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(methods, "_MODELS", {"one": None, "two": None})
    for name in ("one", "two"):
        language_folder(tmp_path / "models" / name)
    text, page = tmp_path / "text.txt", tmp_path / "docs" / "methods.md"
    text.write_text(TEXT)
    words = ["methods", "-o", str(tmp_path), "--calibration", str(text), "--text", str(text)]
    few = ["--samples", "2", "--eval-samples", "1", "--budgets", "4", "--methods", "uniform"]
    assert main([*words, *few, "--models", "two", "--document", str(page)]) == 0
    assert main([*words, *few, "--models", "one,two", "--document", str(page)]) == 0
    seen = capsys.readouterr()
    assert seen.err.count("measured already") == 1
    written = page.read_text()
    assert written.index("## one") < written.index("## two")
    assert "- `uniform`: Uniform GPTQ" in written
    for name in ("one", "two"):
        found = json.loads((tmp_path / name / "compare.json").read_text())["measured"]
        assert f"| {found['uniform at 4']['kl']:.4f} |" in written.split(f"## {name}")[1]
        assert f"(methods-{name}.svg)" in written
        assert (page.parent / f"methods-{name}.svg").read_text().startswith("<svg")
    assert main([*words, *few, "--models", "too"]) == 2
    assert "did you mean 'two'?" in capsys.readouterr().err


def test_minilm_needs_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(minilm, "_PACKAGE", "no_such_package")
    with pytest.raises(MachineError, match="all-minilm") as refusal:
        minilm.prepare(tmp_path / "model")
    assert "pip install" in refusal.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.ci_sample
@pytest.mark.usefixtures("one_thread")
def test_a_small_opt_learns_and_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from mpqc.frontend.small_opt import SmallOpt, write_small_opt
    from mpqc.tools.evaluate import evaluate
    from mpqc.tools.export import export_folder

    def track(steps: Iterable[int], total: int, what: str) -> Iterable[int]:
        del total, what
        return steps

    shape = SmallOpt(300, 64, 2, 2, length=32, batch=8, steps=60, rate=1e-2)
    with pytest.raises(InputError, match="too short"):
        write_small_opt(tmp_path / "model", "Short.", track, shape)
    folder = write_small_opt(tmp_path / "model", TEXT, track, shape)
    again = write_small_opt(tmp_path / "again", TEXT, track, shape)
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (again / weights).read_bytes()
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    exported = export_folder(folder, tmp_path / "onnx").output
    found = evaluate(exported, exported, [text], samples=4, sequence_length=32)
    assert found.original_perplexity is not None
    assert found.original_perplexity < 20  # it knows the text by heart; 300 is ignorance

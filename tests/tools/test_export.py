"""Hugging Face folders of small random models through both exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpqc.backend.onnxruntime.runner import open_session
from mpqc.ir import UsageError
from mpqc.tools.export import export_folder

from .tiny_models import VOCABULARY, byte_tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.ort, pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert() -> Any:
    return transformers.BertModel(
        transformers.BertConfig(vocab_size=VOCABULARY, intermediate_size=128, **SMALL)
    )


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64
        )
    )


def opt() -> Any:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            ffn_dim=128,
            word_embed_proj_dim=64,
            max_position_embeddings=64,
            **SMALL,
        )
    )


def vit() -> Any:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(intermediate_size=128, image_size=32, patch_size=8, **SMALL)
    )


def feeds_for(model: Any, session: Any) -> dict[str, np.ndarray]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": np.random.default_rng(0).random((3, 3, 32, 32), np.float32)}
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, 11))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {
        one.name: np.zeros((3, one.shape[1], 0, one.shape[3]), np.float32)
        if one.name.startswith("past")
        else known[one.name]
        for one in session.inputs
    }


@pytest.mark.parametrize("make", [bert, gpt2, opt, vit])
def test_torch_export_keeps_the_numbers(make: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path / "model")
    result = export_folder(tmp_path / "model", tmp_path / "out")
    assert result.route == "torch-export"
    with open_session(result.model) as session:
        feeds = feeds_for(model, session)
        found = session.run(feeds)[session.outputs[0].name]
    with torch.no_grad():
        given = {name: torch.tensor(one) for name, one in feeds.items() if one.size}
        wanted = model(**given)[0].numpy()
    seen = feeds.get("attention_mask", np.ones(found.shape[:1])) > 0
    np.testing.assert_allclose(found[seen], wanted[seen], atol=2e-5)


def test_decoders_get_a_cache(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    folder = tmp_path / "model"
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=VOCABULARY, intermediate_size=128, **SMALL)
    )
    model.save_pretrained(folder)
    byte_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "!", "bos_token": "!"}'
    )
    result = export_folder(folder, tmp_path / "out")
    assert result.route == "genai-builder"
    assert "genai_config.json" in result.files
    assert not [name for name in result.files if name.startswith(".")]
    with open_session(result.model) as session:
        assert any(one.name.startswith("past") for one in session.inputs)
    with pytest.raises(UsageError):
        export_folder(folder, tmp_path / "out")
    with pytest.raises(UsageError):
        export_folder(folder, folder, overwrite=True)

"""Small networks of many architectures, exported as users do it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....ir.atomic_file import put_in_place
from ....ir.owned_folder import temporary_folder
from .networks import (
    Conformer,
    Detector,
    Scan,
    Tagger,
    UNet,
    generator,
    mobilenet,
    resnet,
    tabular,
)


def _from_config(kind: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        made = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        return _FirstOutput(made)

    return build


class _FirstOutput(nn.Module):
    """A transformers model that returns one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(given, return_dict=False)[0]
        return found


@dataclass(frozen=True)
class Recipe:
    """How to build and export a model.

    Attributes:
        build: Makes the module.
        shape: Of its input.
        vocabulary: How many ids it reads; 0 for floats.
        opset: Version of the operators.
        dynamo: Whether the newer exporter writes it.
        dtype: Of its weights and its input.
        settings: More for the exporter.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0
    opset: int = 17
    dynamo: bool = False
    dtype: torch.dtype = torch.float32
    settings: Mapping[str, Any] = field(default_factory=dict)


_WIDE: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
}
BUILT: dict[str, Recipe] = {
    "resnet": Recipe(resnet, (1, 3, 64, 64), opset=11),
    "mobilenet": Recipe(mobilenet, (1, 3, 64, 64), opset=13),
    "u-net": Recipe(UNet, (1, 3, 48, 48), opset=14),
    "generator": Recipe(generator, (1, 64, 1, 1), opset=9),
    "lstm tagger": Recipe(Tagger, (1, 24), 128, opset=12),
    "gru tagger": Recipe(lambda: Tagger(nn.GRU), (1, 24), 128, opset=16),
    "conformer": Recipe(Conformer, (1, 40, 80), opset=17),
    "tabular": Recipe(tabular, (1, 30), opset=10),
    "detector": Recipe(Detector, (1, 3, 64, 64), opset=13),
    "scan": Recipe(Scan, (1, 16), 128, opset=19),
    "resnet, float16": Recipe(resnet, (1, 3, 64, 64), opset=15, dtype=torch.float16),
    "resnet, torch.export": Recipe(resnet, (1, 3, 64, 64), opset=20, dynamo=True),
    "vit": Recipe(
        _from_config("ViTModel", "ViTConfig", image_size=32, patch_size=8, **_WIDE),
        (1, 3, 32, 32),
        opset=18,
        dynamo=True,
    ),
    "bert": Recipe(
        _from_config("BertModel", "BertConfig", vocab_size=256, **_WIDE),
        (1, 24),
        256,
        opset=18,
        dynamo=True,
    ),
    "cross-encoder": Recipe(
        _from_config(
            "BertForSequenceClassification", "BertConfig",
            vocab_size=256, num_labels=2, **_WIDE,
        ),
        (1, 24),
        256,
        opset=14,
    ),
    "distilbert": Recipe(
        _from_config(
            "DistilBertModel", "DistilBertConfig", vocab_size=256, dim=96, n_layers=2,
            n_heads=4, hidden_dim=192,
        ),
        (1, 24),
        256,
        opset=18,
        dynamo=True,
    ),
    "gpt2": Recipe(
        _from_config(
            "GPT2Model", "GPT2Config", vocab_size=256, n_embd=96, n_layer=2, n_head=4,
            n_positions=64, bos_token_id=1, eos_token_id=2, use_cache=False,
        ),
        (1, 24),
        256,
        opset=18,
        dynamo=True,
    ),
    "t5 encoder": Recipe(
        _from_config(
            "T5EncoderModel", "T5Config", vocab_size=256, d_model=96, d_kv=24, d_ff=192,
            num_layers=2, num_heads=4,
        ),
        (1, 24),
        256,
        opset=16,
    ),
    "clip's eye": Recipe(
        _from_config(
            "CLIPVisionModel", "CLIPVisionConfig", image_size=32, patch_size=8, **_WIDE
        ),
        (1, 3, 32, 32),
        opset=18,
        dynamo=True,
    ),
    "wav2vec2": Recipe(
        _from_config(
            "Wav2Vec2Model", "Wav2Vec2Config", conv_dim=(32,) * 7, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4, **_WIDE,
        ),
        (1, 8000),
        opset=17,
    ),
}  # fmt: skip


def export(name: str, path: Path) -> Path:
    """Returns the file of a model, exported if it is missing."""
    if path.is_file():
        return path
    recipe = BUILT[name]
    torch.manual_seed(0)
    module = recipe.build().eval()
    _liven(module)
    module, given = module.to(recipe.dtype), torch.randn(recipe.shape).to(recipe.dtype)
    if recipe.vocabulary:
        given = torch.randint(0, recipe.vocabulary, recipe.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        partial = folder / path.name
        torch.onnx.export(
            module,
            (given,),
            str(partial),
            dynamo=recipe.dynamo,
            opset_version=recipe.opset,
            input_names=["x"],
            output_names=["y"],
            external_data=False,
            **recipe.settings,
        )
        put_in_place(partial, path)
    return path


def _liven(module: nn.Module) -> None:
    """Gives norms statistics that are not those of a network that nobody has trained."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)

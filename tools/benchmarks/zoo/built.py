"""Small networks of many architectures, with random weights, exported as users do it."""

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


class Residual(nn.Module):
    """Two convolutions beside a shortcut, as in ResNet."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        before = width // stride
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1)
        self.shortcut = nn.Conv2d(before, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + self.shortcut(x))


def resnet() -> nn.Module:
    """Returns an image classifier of residual blocks."""
    stem = nn.Conv2d(3, 32, 7, 2, 3)
    blocks = [Residual(32), Residual(64, 2), Residual(128, 2), Residual(128)]
    return nn.Sequential(
        stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100)
    )


def mobilenet() -> nn.Module:
    """Returns an image classifier of inverted residuals with depthwise convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.Hardswish()]
    for before, after in ((32, 64), (64, 64), (64, 128), (128, 128)):
        wide = 3 * before
        layers += [nn.Conv2d(before, wide, 1), nn.BatchNorm2d(wide), nn.Hardswish()]
        layers += [
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
        ]
        layers += [nn.Conv2d(wide, after, 1), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100))


class UNet(nn.Module):
    """Down, and up again beside what was seen on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 64, 3, 2, 1)])
        self.low = nn.Conv2d(64, 128, 3, 2, 1)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(128, 32, 2, 2)]
        )
        self.out = nn.Conv2d(64, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.down[0](x))
        second = torch.relu(self.down[1](first))
        up = torch.relu(self.up[0](torch.relu(self.low(second))))
        up = torch.relu(self.up[1](torch.cat([up, second], 1)))
        found: torch.Tensor = self.out(torch.cat([up, first], 1))
        return found


def generator() -> nn.Module:
    """Returns the half of a GAN that draws."""
    return nn.Sequential(
        nn.ConvTranspose2d(64, 128, 4),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 3, 4, 2, 1),
        nn.Tanh(),
    )


class Tagger(nn.Module):
    """Characters through a bidirectional LSTM, as in diacritizers and OCR."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU] = nn.LSTM) -> None:
        super().__init__()
        self.table = nn.Embedding(128, 64)
        self.states = cell(64, 96, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(192, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.states(self.table(ids))[0])
        return found


class Conformer(nn.Module):
    """Attention and a depthwise convolution along time, over frames of sound."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.enter = nn.Conv1d(40, width, 3, 2, 1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.point = nn.Conv1d(width, 2 * width, 1)
        self.depth = nn.Conv1d(width, width, 15, 1, 7, groups=width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        self.head = nn.Linear(width, 60)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        x = self.enter(sound).transpose(1, 2)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        wide = nn.functional.glu(self.point(self.norms[1](x).transpose(1, 2)), 1)
        x = x + torch.nn.functional.silu(self.depth(wide)).transpose(1, 2)
        found: torch.Tensor = self.head(x + self.feed(x))
        return found


def tabular() -> nn.Module:
    """Returns a perceptron over a row of a table."""
    return nn.Sequential(
        nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3)
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
        settings: More for the exporter.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0
    opset: int = 17
    dynamo: bool = False
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
    given = torch.randn(recipe.shape)
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

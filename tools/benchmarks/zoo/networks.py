"""Small networks of many kinds, with random weights."""

from __future__ import annotations

import torch
from torch import nn


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


class Detector(nn.Module):
    """Boxes and classes at two scales, as YOLO finds them: places of a grid, sizes, scores."""

    def __init__(self, width: int = 32, classes: int = 8) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.SiLU()
                )
                for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width))
            ]
        )
        self.narrow = nn.Conv2d(4 * width, 2 * width, 1)
        self.heads = nn.ModuleList(
            [nn.Conv2d(4 * width, 4 + classes, 1), nn.Conv2d(4 * width, 4 + classes, 1)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = self.stages[1](self.stages[0](x))
        small = self.stages[2](middle)
        up = nn.functional.interpolate(self.narrow(small), scale_factor=2.0, mode="nearest")
        found = [
            self._boxes(head(one))
            for head, one in zip(self.heads, (torch.cat([up, middle], 1), small), strict=True)
        ]
        return torch.cat(found, 1)

    def _boxes(self, made: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = made.shape
        down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([across, down]).to(made.dtype)[None]
        place = made[:, :2].sigmoid() + grid
        size = made[:, 2:4].clamp(-4, 4).exp()
        boxes = torch.cat([place, size, made[:, 4:].sigmoid()], 1)
        return boxes.reshape(batch, channels, height * width).transpose(1, 2)


class Scan(nn.Module):
    """A state that forgets as its input says, step by step, as in Mamba."""

    def __init__(self, width: int = 96, state: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(128, width)
        self.enter = nn.Linear(width, 2 * width)
        self.depth = nn.Conv1d(width, width, 4, 1, 3, groups=width)
        self.steps = nn.Linear(width, width)
        self.choose = nn.Linear(width, 2 * state)
        self.decay = nn.Parameter(torch.rand(width, state))
        self.leave = nn.Linear(width, 128)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, gate = self.enter(self.table(ids)).chunk(2, -1)
        x = self.depth(x.transpose(1, 2))[..., : ids.shape[1]].transpose(1, 2)
        x = nn.functional.silu(x)
        step = nn.functional.softplus(self.steps(x))
        into, out = self.choose(x).chunk(2, -1)
        state, found = torch.zeros_like(self.decay)[None], []
        for at in range(ids.shape[1]):
            kept = torch.exp(-step[:, at, :, None] * self.decay)
            state = kept * state + (step * x)[:, at, :, None] * into[:, at, None]
            found.append((state * out[:, at, None]).sum(-1))
        made: torch.Tensor = self.leave(torch.stack(found, 1) * nn.functional.silu(gate))
        return made

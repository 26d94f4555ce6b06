"""Weights that no kernel of codes can read: the runtime makes floats of them at load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mpqc.ir import read_model

from .compiled import compiled
from .models import WIDTH, by_torchscript

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(120)]


class Recurrent(torch.nn.Module):
    """A bidirectional LSTM under a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LSTM(WIDTH, WIDTH, bidirectional=True, batch_first=True)
        self.second = torch.nn.GRU(2 * WIDTH, WIDTH, batch_first=True)
        self.head = torch.nn.Linear(WIDTH, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.second(self.first(x)[0])[0])
        return found


class Generator(torch.nn.Module):
    """Transposed convolutions, one of them grouped, as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.ConvTranspose2d(WIDTH, 48, 4),
            torch.nn.ReLU(),
            torch.nn.ConvTranspose2d(48, 32, 4, stride=2, padding=1, groups=2),
            torch.nn.ReLU(),
            torch.nn.ConvTranspose2d(32, 10, 5, stride=2),
            torch.nn.Tanh(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x)
        return found


class Experts(torch.nn.Module):
    """Weights of three axes in Einsum and MatMul, and one that is multiplied from the left."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = torch.nn.Parameter(torch.randn(4, WIDTH, 32, generator=generator) / 8)
        self.down = torch.nn.Parameter(torch.randn(4, 32, WIDTH, generator=generator) / 6)
        self.mixed = torch.nn.Parameter(torch.randn(96, WIDTH, generator=generator) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("bi,eij->ebj", x, self.up).relu()
        result = torch.matmul(hidden, self.down).sum(0)
        return torch.matmul(self.mixed, result.unsqueeze(-1)).squeeze(-1)


CASES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], int]] = {
    "recurrent": (Recurrent, (1, 12, WIDTH), 5),
    "generator": (Generator, (1, WIDTH, 1, 1), 3),
    "experts": (Experts, (1, WIDTH), 3),
}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("budget", "cosine"), [(8.6, 0.999), (5.0, 0.98)])
def test_they_take_the_bits_that_were_asked_for(
    case: str, opset: int, budget: float, cosine: float, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    build, shape, arrays = CASES[case]
    model = by_torchscript(build(), torch.randn(*shape), tmp_path / "model.onnx", opset)
    found = compiled(model, budget, tmp_path, samples=16)
    assert not found.reasons
    assert found.sweep == "torch"
    units = found.result.report["units"]
    assert len(units) >= arrays
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > cosine


@pytest.mark.parametrize(("kernels", "products"), [("always", 4), ("auto", 0), ("never", 0)])
def test_products_of_codes_are_a_choice(kernels: str, products: int, tmp_path: Path) -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4)))
    path = by_torchscript(module, torch.randn(1, WIDTH), tmp_path / "model.onnx", 17)
    found = compiled(path, 8.8, tmp_path, samples=16, kernels=kernels)
    graph = read_model(found.result.model).graph
    assert sum(node.op_type == "MatMulNBits" for node in graph) == products
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.999


def _convolutions() -> torch.nn.Module:
    layers = [torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 48, 3, 2)]
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Conv2d(48, 8, 1))


def test_weights_in_half_precision_take_codes(tmp_path: Path) -> None:
    torch.manual_seed(2)
    given = torch.randn(1, 3, 16, 16).half()
    path = by_torchscript(_convolutions().half(), given, tmp_path / "model.onnx", 15)
    found = compiled(path, 8.8, tmp_path, samples=16)
    assert not found.reasons
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.9999


def test_bits_beyond_eight_are_used(tmp_path: Path) -> None:
    torch.manual_seed(2)
    given = torch.randn(1, 3, 16, 16)
    path = by_torchscript(_convolutions(), given, tmp_path / "model.onnx", 15)
    found = compiled(path, 12, tmp_path, samples=16)
    units = found.result.report["units"]
    assert {width for unit in units for width in unit["options"]} >= {"8g288", "16g288"}
    assert found.result.got > 11
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.999999

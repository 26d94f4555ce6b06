"""GGUF files that are none, and the noise that takes weights off their 4-bit grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpqc.frontend.gguf_folder import dither, write_gguf_folder
from mpqc.ir import InputError, UsageError


def linear(columns: int) -> torch.nn.Linear:
    layer = torch.nn.Linear(columns, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(8 * columns).view(8, columns) % 16)
    return layer


def test_dither_stays_within_half_a_step() -> None:
    layer = linear(64)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    dither(layer, seed=0)
    moved = (layer.weight.detach() - before).abs()
    assert 0.4 < float(moved.max()) <= 0.5  # one step of this grid is 1
    assert float((moved > 0).float().mean()) > 0.99
    assert torch.equal(layer.bias, bias)


def test_one_seed_gives_one_model() -> None:
    first, second, other = linear(64), linear(64), linear(64)
    dither(first, seed=3)
    dither(second, seed=3)
    dither(other, seed=4)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


def test_rows_without_groups_are_left_alone() -> None:
    layer = linear(33)
    before = layer.weight.clone()
    dither(layer, seed=0)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "content",
    [b"", b"GG", b"PK\x03\x04", b"GGUF", b"GGUF" + b"\xff" * 60, b"GGUF" + bytes(60)],
    ids=["empty", "short", "zip", "cut", "ones", "zeros"],
)
def test_broken_file_is_refused_and_nothing_written(tmp_path: Path, content: bytes) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.gguf"):
        write_gguf_folder(gguf, tmp_path / "model")
    assert sorted(tmp_path.rglob("*")) == [gguf]


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="exists"):
        write_gguf_folder(gguf, tmp_path)

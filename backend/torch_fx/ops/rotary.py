"""Rotary position embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..table import MICROSOFT, lowering


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Turn the pairs of the last axis of ``x`` by the given angles.

    Args:
        x: Batch, heads, steps, head size; what exceeds twice the angles is left alone.
        cos: Batch (or 1), steps, half the rotated size.
        sin: Shaped like ``cos``.
        interleaved: Whether pairs are neighbours instead of halves.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    width = 2 * cos.shape[-1]
    turning, rest = x[..., :width], x[..., width:]
    if interleaved:
        even, odd = turning[..., 0::2], turning[..., 1::2]
        pairs = torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1)
        turned = pairs.flatten(-2)
    else:
        left, right = turning.chunk(2, dim=-1)
        turned = torch.cat([cos * left - sin * right, sin * left + cos * right], dim=-1)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def by_heads(x: Tensor, heads: int) -> Tensor:
    """Batch, steps, hidden to batch, heads, steps, head size."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def by_steps(x: Tensor) -> Tensor:
    """Batch, heads, steps, head size to batch, steps, hidden."""
    return x.transpose(1, 2).flatten(2)


@lowering("", "RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """``x`` turned by the angles at ``position_ids``, or by the angles given per step."""
    heads = x if x.dim() == 4 else by_heads(x, num_heads)
    cos, sin = cos_cache, sin_cache
    if position_ids is not None:
        cos, sin = cos_cache[position_ids.long()], sin_cache[position_ids.long()]
    half = (rotary_embedding_dim or heads.shape[-1]) // 2
    result = rotated(heads, cos[..., :half], sin[..., :half], interleaved=bool(interleaved))
    return result if x.dim() == 4 else by_steps(result)


@lowering(MICROSOFT, "RotaryEmbedding", ignores=("is_packed_batching", "scale"))
def rotary_embedding_microsoft(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """``x`` turned by the angles at ``position_ids``, which may be just the first position."""
    width = rotary_embedding_dim or 2 * cos_cache.shape[-1]
    heads = x
    if x.dim() == 3:
        count = num_heads if num_heads and rotary_embedding_dim else x.shape[-1] // width
        heads = by_heads(x, count)
    positions = position_ids.long()
    if positions.dim() < 2 or positions.numel() == 1:
        steps = torch.arange(heads.shape[2], device=x.device)
        positions = positions.reshape(-1, 1) + steps
    cos, sin = cos_cache[positions], sin_cache[positions]
    result = rotated(heads, cos, sin, interleaved=bool(interleaved))
    return result if x.dim() == 4 else by_steps(result)

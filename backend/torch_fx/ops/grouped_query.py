"""Grouped query attention as onnxruntime-genai writes it, and linear attention."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from ..table import MICROSOFT, lowering
from .attention import attend_briefly, hidden_unless
from .rotary import by_heads, by_steps, rotated


@lowering(MICROSOFT, "GroupQueryAttention")
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
    scale: float | None = None,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    sliding_window_cache: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention with a cache; returns output, present key and present value.

    ``seqlens_k`` holds, per sequence, its valid keys (cached and new) less one. New keys go
    behind the valid cached ones; in a first prompt, which may be padded on the right, they
    start at 0. With ``sliding_window_cache`` the cache holds the most recent keys only.
    """
    query, key, value = _unpacked(query, key, value, num_heads, kv_num_heads)
    steps, total = query.shape[2], int(total_sequence_length.item())
    start = _start_of_new_keys(seqlens_k, steps, total)
    positions = start[:, None] + torch.arange(steps, device=query.device)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        turns = positions if position_ids is None else position_ids.long()
        cos, sin = cos_cache[turns], sin_cache[turns]
        query = rotated(query, cos, sin, interleaved=bool(rotary_interleaved))
        key = rotated(key, cos, sin, interleaved=bool(rotary_interleaved))
    window = _Window(past_key, local_window_size) if sliding_window_cache else None
    if window is not None:
        past_key, past_value = (window.placed(one, start) for one in (past_key, past_value))
    key = _cached(past_key, key, start, total)
    value = _cached(past_value, value, start, total)
    allowed = _causal(positions, total, local_window_size)
    bias = hidden_unless(allowed, query.dtype)
    if attention_bias is not None:
        bias = bias + attention_bias[..., :total]
    sink = None if head_sink is None else head_sink.reshape(-1, 1, 1)
    if sink is None and smooth_softmax > 0:
        sink = query.new_zeros(1, 1, 1)
    output = attend_briefly(
        query,
        key[:, :, :total],
        value[:, :, :total],
        bias,
        scale=scale,
        softcap=softcap,
        sink=sink,
    )
    if window is not None:
        ends = seqlens_k.reshape(-1).to(torch.int64) + 1
        key, value = window.kept(key, ends), window.kept(value, ends)
    return by_steps(output), key, value


class _Window:
    """A cache of fewer rows than tokens, laid out as onnxruntime documents it.

    Of ``tokens`` so far, the last ``resident(tokens)`` stand in the first rows, in order; the
    other rows mean nothing.
    """

    def __init__(self, past: Tensor | None, window: int) -> None:
        self._rows = 0 if past is None else past.shape[2]
        self._freed = self._rows - window + 1  # rows that one eviction frees

    def resident(self, tokens: Tensor) -> Tensor:
        """How many tokens the cache holds after ``tokens``."""
        over = (tokens - self._rows).clamp(min=0)
        return tokens - self._freed * ((over + self._freed - 1) // self._freed)

    def placed(self, past: Tensor | None, tokens: Tensor) -> Tensor | None:
        """The cache with every resident row at the position of its token."""
        if past is None:
            return None
        slots = torch.arange(int(tokens.max()), device=past.device)
        source = slots - (tokens - self.resident(tokens))[:, None]
        return _rows_of(past, source.clamp(min=0))

    def kept(self, full: Tensor, tokens: Tensor) -> Tensor:
        """The cache that ``tokens`` rows of ``full`` leave."""
        if self._rows == 0:
            return full
        slots = torch.arange(self._rows, device=full.device)
        source = slots + (tokens - self.resident(tokens))[:, None]
        return _rows_of(full, source.clamp(max=full.shape[2] - 1))


def _rows_of(states: Tensor, index: Tensor) -> Tensor:
    """Rows of ``states`` (batch, heads, rows, size) by ``index`` (batch, rows)."""
    wide = index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, wide)


def _unpacked(
    query: Tensor, key: Tensor | None, value: Tensor | None, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    if key is not None and value is not None:
        return by_heads(query, heads), by_heads(key, kv_heads), by_heads(value, kv_heads)
    packed = by_heads(query, heads + 2 * kv_heads)
    q, k, v = torch.split(packed, [heads, kv_heads, kv_heads], dim=1)
    return q, k, v


def _start_of_new_keys(seqlens_k: Tensor, steps: int, total: int) -> Tensor:
    valid = seqlens_k.reshape(-1).to(torch.int64) + 1
    return torch.zeros_like(valid) if steps == total else valid - steps


def _cached(past: Tensor | None, new: Tensor, start: Tensor, total: int) -> Tensor:
    """``new`` written behind the valid part of ``past``."""
    if past is None or past.shape[2] == 0:
        return new
    length, steps = past.shape[2], new.shape[2]
    if length + steps == total and bool((start == length).all()):
        return torch.cat([past, new], dim=2)
    slots = torch.arange(max(total, length), device=new.device)
    begin = start[:, None]
    source = torch.where(slots < begin, slots, length + slots - begin)
    kept = torch.where(slots < begin + steps, source, slots.clamp(max=length - 1))
    return _rows_of(torch.cat([past, new], dim=2), kept)


def _causal(positions: Tensor, total: int, window: int) -> Tensor:
    """Which keys each query may see: batch, 1, steps, keys."""
    behind = positions[:, :, None] - torch.arange(total, device=positions.device)
    seen = behind >= 0
    if window > 0:
        seen = seen & (behind < window)
    return seen[:, None]


@lowering("", "LinearAttention", ignores=("chunk_size",))
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """A state of keys times values, read by queries; returns output and the last state."""
    q = by_heads(query.float(), q_num_heads)
    k, v = by_heads(key.float(), kv_num_heads), by_heads(value.float(), kv_num_heads)
    groups = q_num_heads // kv_num_heads
    state = q.new_zeros(q.shape[0], kv_num_heads, k.shape[-1], v.shape[-1])
    state = state if past_state is None else past_state.float()
    fading = None if decay is None else by_heads(decay.float(), kv_num_heads).exp()
    rates = None if beta is None else beta.float().transpose(1, 2)
    factor = scale or 1.0 / sqrt(k.shape[-1])
    rows = []
    for step in range(q.shape[2]):
        if fading is not None:
            state = state * fading[:, :, step, :, None]
        written = v[:, :, step]
        if rates is not None:
            known = torch.einsum("bhkv,bhk->bhv", state, k[:, :, step])
            written = rates[:, :, step, None] * (written - known)
        state = state + k[:, :, step, :, None] * written[:, :, None, :]
        read = state.repeat_interleave(groups, dim=1)
        rows.append(factor * torch.einsum("bhk,bhkv->bhv", q[:, :, step], read))
    output = by_steps(torch.stack(rows, dim=2)).to(query.dtype)
    return output, state.to(query.dtype if past_state is None else past_state.dtype)

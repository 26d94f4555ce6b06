"""Attention: the core, the standard operator and the contrib ones without grouped heads."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional

from ..dtypes import torch_dtype
from ..table import MICROSOFT, lowering
from .rotary import by_heads, by_steps


@dataclass(frozen=True)
class Attended:
    """What attention computes on its way, each of shape batch, heads, steps, ...

    Attributes:
        output: The weighted sum of values.
        scores: Scaled products of queries and keys, soft-capped.
        biased: Scores with the bias added.
        weights: The softmax of the biased scores.
    """

    output: Tensor
    scores: Tensor
    biased: Tensor
    weights: Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    *,
    scale: float | None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    softmax_dtype: torch.dtype | None = None,
) -> Attended:
    """``softmax(query key' * scale + bias) value``; several query heads may share one of keys.

    Args:
        query: Batch, heads, steps, head size.
        key: Batch, key heads, key steps, head size.
        value: Batch, key heads, key steps, value size.
        bias: Added to the scores; minus infinity hides a key, but never all keys of a row.
        scale: One over the root of the head size by default (also for 0).
        softcap: ``softcap * tanh(scores / softcap)`` unless 0.
        sink: A logit per head (shape heads, 1, 1) that takes weight and gives nothing.
        softmax_dtype: Type to compute the softmax in.
    """
    groups = query.shape[1] // key.shape[1]
    grouped = torch.unflatten(query, 1, (-1, groups)) * (scale or 1.0 / sqrt(query.shape[-1]))
    scores = (grouped @ key.unsqueeze(2).mT).flatten(1, 2)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    biased = scores if bias is None else scores + bias
    weights = _weights(biased, sink, softmax_dtype or biased.dtype).to(query.dtype)
    output = (torch.unflatten(weights, 1, (-1, groups)) @ value.unsqueeze(2)).flatten(1, 2)
    return Attended(output, scores, biased, weights)


def attend_briefly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    *,
    scale: float | None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """The output of ``attend``, by torch's fused kernels unless scores must be bent."""
    if softcap or sink is not None:
        done = attend(query, key, value, bias, scale=scale, softcap=softcap, sink=sink)
        return done.output
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=scale or None
    )


def _weights(logits: Tensor, sink: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = logits.to(dtype)
    if sink is None:
        return torch.softmax(logits, dim=-1)
    extra = sink.to(dtype).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, extra], dim=-1), dim=-1)[..., :-1]


def hidden_unless(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias of 0 where ``allowed``, minus infinity elsewhere."""
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill(~allowed, -torch.inf)


def _sum(*biases: Tensor | None) -> Tensor | None:
    present = [bias for bias in biases if bias is not None]
    return sum(present[1:], present[0]) if present else None


@lowering("", "Attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of the standard domain; returns output, present key, value and scores."""
    flat = query.dim() == 3
    if flat:
        query = by_heads(query, q_num_heads)
        key, value = by_heads(key, kv_num_heads), by_heads(value, kv_num_heads)
    offset: Tensor | int = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    if nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen.reshape(-1, 1, 1, 1) - query.shape[2]
    ahead = 0 if is_causal else right_window_size
    allowed = _visible(query, key, offset, ahead, left_window_size)
    if nonpad_kv_seqlen is not None:
        steps = torch.arange(key.shape[2], device=key.device)
        allowed = allowed & (steps < nonpad_kv_seqlen.reshape(-1, 1, 1, 1))
    bias = hidden_unless(allowed, query.dtype)
    if attn_mask is not None:
        bias = bias + _as_bias(attn_mask, key.shape[2], query.dtype)
    blind = bias.amax(-1, keepdim=True) == -torch.inf
    done = attend(
        query,
        key,
        value,
        bias.masked_fill(blind, 0.0),
        scale=scale,
        softcap=softcap,
        softmax_dtype=None if softmax_precision is None else torch_dtype(softmax_precision),
    )
    output = done.output.masked_fill(blind, 0.0)
    weights = done.weights.masked_fill(blind, 0.0)
    shown = (done.scores, done.scores, done.scores + bias, weights)[qk_matmul_output_mode]
    return by_steps(output) if flat else output, key, value, shown


@lowering("ai.onnx.preview", "FlexAttention")
def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    softmax_precision: int | None = None,
) -> Tensor:
    """Attention without a mask; the operator's own graphs are not lowered."""
    precision = 1 if query.dtype.itemsize < 4 else None
    code = precision if softmax_precision is None else softmax_precision
    dtype = None if code is None else torch_dtype(code)
    return attend(query, key, value, None, scale=scale, softmax_dtype=dtype).output


def _visible(
    query: Tensor, key: Tensor, offset: Tensor | int, ahead: int, behind: int
) -> Tensor:
    """Which keys a query may see: ``behind`` steps before its position to ``ahead`` after."""
    position = torch.arange(query.shape[2], device=query.device)[:, None] + offset
    distance = torch.arange(key.shape[2], device=key.device) - position
    seen = torch.ones_like(distance, dtype=torch.bool)
    if ahead >= 0:
        seen = seen & (distance <= ahead)
    if behind >= 0:
        seen = seen & (distance >= -behind)
    return seen


def _as_bias(mask: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    bias = hidden_unless(mask, dtype) if mask.dtype is torch.bool else mask
    return functional.pad(bias, [0, length - mask.shape[-1]], value=-torch.inf)


@lowering(MICROSOFT, "MultiHeadAttention")
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float | None = None,
    unidirectional: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Attention of ``num_heads`` heads; returns output, present key, value and scores."""
    query, key, value = _three_heads(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    total = _sum(
        attention_bias,
        _mask_bias(key_padding_mask, query, key, mask_filter_value),
        _causal_bias(query, key) if unidirectional else None,
    )
    if outputs < 4:
        return by_steps(attend_briefly(query, key, value, total, scale=scale)), key, value
    done = attend(query, key, value, total, scale=scale)
    return by_steps(done.output), key, value, done.biased


def _three_heads(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value by heads, from any of the packings that the operator takes."""
    if key is None:
        q, k, v = (part.transpose(1, 2) for part in query.unbind(3))
    elif value is None:
        q = by_heads(query, heads)
        k, v = (part.transpose(1, 2) for part in key.unbind(3))
    else:
        q = by_heads(query, heads)
        k, v = (x if x.dim() == 4 else by_heads(x, heads) for x in (key, value))
    if bias is None:
        return q, k, v
    sizes = [heads * q.shape[-1], heads * k.shape[-1], heads * v.shape[-1]]
    of_q, of_k, of_v = (part.reshape(heads, 1, -1) for part in torch.split(bias, sizes))
    return q + of_q, k + of_k, v + of_v


def _causal_bias(query: Tensor, key: Tensor) -> Tensor:
    offset = key.shape[2] - query.shape[2]
    return hidden_unless(_visible(query, key, offset, 0, -1), query.dtype)


def _mask_bias(mask: Tensor | None, query: Tensor, key: Tensor, fill: float) -> Tensor | None:
    """The bias for a mask of lengths, of keys, or of queries and keys."""
    if mask is None:
        return None
    batch, _, length, _ = key.shape
    steps = torch.arange(length, device=key.device)
    if mask.dim() == 1:
        ends = mask[:batch, None]
        kept = steps < ends
        if mask.shape[0] == 2 * batch:
            kept = kept & (steps >= mask[batch:, None])
    else:
        kept = mask != 0
    kept = kept[:, None, None, :] if kept.dim() == 2 else kept.reshape(batch, 1, -1, length)
    return query.new_zeros(kept.shape).masked_fill(~kept, fill)


@lowering(MICROSOFT, "Attention")
def attention_microsoft(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention with its projections; returns output and the stacked keys and values."""
    projected = x @ weights if bias is None else x @ weights + bias
    sizes = qkv_hidden_sizes or [projected.shape[-1] // 3] * 3
    query, key, value = (
        by_heads(part, num_heads) for part in torch.split(projected, sizes, -1)
    )
    if past is not None:
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
    total = _sum(
        attention_bias,
        _mask_bias(mask_index, query, key, mask_filter_value),
        _causal_bias(query, key) if unidirectional else None,
    )
    output = attend_briefly(query, key, value, total, scale=scale)
    present = torch.stack([key, value]) if key.shape == value.shape else key
    return by_steps(output), present

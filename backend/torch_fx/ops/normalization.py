"""Softmax and the normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..dtypes import torch_dtype
from ..table import MICROSOFT, lowering


@lowering("", "Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Exponentials along ``axis``, scaled to sum 1."""
    return torch.softmax(x, dim=axis)


@lowering("", "Softmax")
def softmax_of_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax over all axes from ``axis`` on."""
    return torch.softmax(x.flatten(axis % x.dim()), dim=-1).reshape(x.shape)


@lowering("", "LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """The logarithm of the softmax along ``axis``."""
    return torch.log_softmax(x, dim=axis)


@lowering("", "LogSoftmax")
def log_softmax_of_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """The logarithm of the softmax over all axes from ``axis`` on."""
    return torch.log_softmax(x.flatten(axis % x.dim()), dim=-1).reshape(x.shape)


def _stashed(x: Tensor, stash_type: int) -> Tensor:
    """``x`` in the type to normalize in, never a narrower one than its own."""
    return x.to(torch.promote_types(x.dtype, torch_dtype(stash_type)))


@lowering("", "LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int,
) -> tuple[Tensor, ...]:
    """``x`` with mean 0 and variance 1 over the axes from ``axis`` on, scaled and shifted."""
    wide = _stashed(x, stash_type)
    axes = list(range(axis % x.dim(), x.dim()))
    mean = wide.mean(axes, keepdim=True)
    centered = wide - mean
    inverse = torch.rsqrt(centered.square().mean(axes, keepdim=True) + epsilon)
    result = (centered * inverse).to(x.dtype) * scale
    result = result if bias is None else result + bias
    return (result, mean, inverse)[:outputs]


def rms_normalized(
    x: Tensor, scale: Tensor, axis: int, epsilon: float, stash_type: int
) -> tuple[Tensor, Tensor]:
    """``x / sqrt(mean(x^2) + epsilon) * scale``, and the factor by which ``x`` shrank."""
    wide = _stashed(x, stash_type)
    axes = list(range(axis % x.dim(), x.dim()))
    inverse = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(scale.dtype) * scale, inverse


@lowering("", "RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * scale``."""
    return rms_normalized(x, scale, axis, epsilon, stash_type)[0]


@lowering("", "SimplifiedLayerNormalization")
@lowering(MICROSOFT, "SimplifiedLayerNormalization")
def simplified_layer_normalization(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int,
) -> tuple[Tensor, ...]:
    """``x / sqrt(mean(x^2) + epsilon) * scale``, and the factor by which ``x`` shrank."""
    return rms_normalized(x, scale, axis, epsilon, stash_type)[:outputs]


@lowering(MICROSOFT, "SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[Tensor, None, Tensor, Tensor]:
    """The norm of ``x + skip + bias``; the sum is the fourth result."""
    total = x + skip if bias is None else x + skip + bias
    result, inverse = rms_normalized(total, gamma, -1, epsilon, 1)
    return result, None, inverse, total


@lowering(MICROSOFT, "SkipLayerNormalization")
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norm of ``x + skip + bias``; the sum is the fourth result."""
    total = x + skip if bias is None else x + skip + bias
    result, mean, inverse = layer_normalization(total, gamma, beta, epsilon=epsilon, outputs=3)
    return result, mean, inverse, total


@lowering(MICROSOFT, "EmbedLayerNormalization")
def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of word + position + segment embeddings; mask lengths; the sum."""
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
    total = functional.embedding(input_ids, word_embedding)
    total = total + functional.embedding(position_ids, position_embedding)
    if segment_ids is not None and segment_embedding is not None:
        total = total + functional.embedding(segment_ids, segment_embedding)
    (result,) = layer_normalization(total, gamma, beta, epsilon=epsilon, outputs=1)
    lengths = torch.zeros(input_ids.shape[0], dtype=torch.int32, device=input_ids.device)
    if mask is not None:
        lengths = mask.sum(1).to(torch.int32)
    return result, lengths, total


def channelwise(parameter: Tensor, x: Tensor) -> Tensor:
    """``parameter`` shaped to broadcast along axis 1 of ``x``."""
    return parameter.reshape(1, -1, *[1] * (x.dim() - 2))


def _in_groups(x: Tensor, num_groups: int, epsilon: float) -> Tensor:
    groups = x.reshape(x.shape[0], num_groups, -1)
    centered = groups - groups.mean(-1, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + epsilon)


@lowering("", "GroupNormalization", since=21)
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """``x`` normalized within groups of channels; scale and bias per channel."""
    wide = _in_groups(_stashed(x, stash_type), num_groups, epsilon)
    return wide.reshape(x.shape).to(x.dtype) * channelwise(scale, x) + channelwise(bias, x)


@lowering("", "GroupNormalization", since=18)
def group_normalization_per_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """``x`` normalized within groups of channels; scale and bias per group."""
    normal = _in_groups(x, num_groups, epsilon)
    return (normal * scale.reshape(-1, 1) + bias.reshape(-1, 1)).reshape(x.shape)


@lowering(MICROSOFT, "GroupNorm")
def group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    groups: int,
    activation: int,
    epsilon: float = 1e-5,
    channels_last: int = 1,
) -> Tensor:
    """Group normalization of images, with SiLU if ``activation``."""
    images = x.movedim(-1, 1) if channels_last else x
    result = functional.group_norm(
        images, groups, gamma.to(x.dtype), beta.to(x.dtype), epsilon
    )
    result = functional.silu(result) if activation else result
    return result.movedim(1, -1) if channels_last else result


@lowering("", "InstanceNormalization", since=6)
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    """``x`` normalized over the pixels of each channel of each image."""
    normal = _in_groups(x.flatten(0, 1).unsqueeze(0), x.shape[0] * x.shape[1], epsilon)
    return normal.reshape(x.shape) * channelwise(scale, x) + channelwise(bias, x)


@lowering("", "BatchNormalization", since=7, ignores=("spatial",))
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` per channel."""
    running: tuple[Tensor, ...] = ()
    if training_mode:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        seen, spread = x.mean(axes), x.var(axes, correction=0)
        running = (
            mean * momentum + seen * (1 - momentum),
            variance * momentum + spread * (1 - momentum),
        )
        mean, variance = seen.to(mean.dtype), spread.to(variance.dtype)
    factor = scale * torch.rsqrt(variance + epsilon)
    shift = bias - mean * factor
    result = (x * channelwise(factor, x) + channelwise(shift, x)).to(x.dtype)
    return (result, *running)[:outputs]


@lowering("", "LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """``x`` divided by its p-norm along ``axis``; 0 where the norm is 0."""
    norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@lowering("", "LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """``x`` divided by a power of the energy of ``size`` neighbouring channels."""
    before = (size - 1) // 2
    energy = functional.pad(x.square().movedim(1, -1), [before, size - 1 - before])
    around = energy.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * around) ** beta


@lowering("", "MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """``x`` with mean 0 and standard deviation 1 over ``axes``."""
    centered = x - x.mean(list(axes), keepdim=True)
    deviation = centered.square().mean(list(axes), keepdim=True).sqrt()
    return centered / (deviation + 1e-9)

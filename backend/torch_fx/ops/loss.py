"""Losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..table import lowering

_NEVER = -(2**31)


@lowering("", "NegativeLogLikelihoodLoss")
def negative_log_likelihood(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Minus the weighted log-probability ``x`` of each target class."""
    ignored = _NEVER if ignore_index is None else ignore_index
    return functional.nll_loss(
        x, target.to(torch.int64), weight, ignore_index=ignored, reduction=reduction
    )


@lowering("", "SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The cross entropy of the softmax over axis 1, and the logarithm of that softmax."""
    logits = torch.log_softmax(scores, dim=1)
    loss = negative_log_likelihood(
        logits, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return loss, logits

"""Mixtures of experts as one operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..table import MICROSOFT, lowering

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "identity": lambda x: x,
}


@lowering(MICROSOFT, "MoE")
def mixture_of_experts(
    x: Tensor,
    router_probs: Tensor,
    fc1_weights: Tensor,
    fc1_bias: Tensor | None,
    fc2_weights: Tensor,
    fc2_bias: Tensor | None = None,
    fc3_weights: Tensor | None = None,
    fc3_bias: Tensor | None = None,
    *,
    k: int = 1,
    activation_type: str = "relu",
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    normalize_routing_weights: int = 0,
    swiglu_fusion: int = 0,
    swiglu_limit: float = torch.inf,
) -> Tensor:
    """The sum of the ``k`` likeliest experts' outputs, each by its share of the softmax.

    An expert sees the tokens that are routed to it, and no others.
    """
    tokens = x.flatten(0, -2)
    weights, chosen = router_probs.softmax(-1).topk(k, -1)
    if normalize_routing_weights:
        weights = weights / weights.sum(-1, keepdim=True)
    result = torch.zeros_like(tokens)
    for expert in range(fc1_weights.shape[0]):
        rows, ranks = torch.nonzero(chosen == expert, as_tuple=True)
        inner = _linear(tokens[rows], fc1_weights, fc1_bias, expert)
        if activation_type == "swiglu":
            gate, up = _gate_and_up(inner, swiglu_fusion)
            if fc3_weights is not None and not swiglu_fusion:
                gate, up = inner, _linear(tokens[rows], fc3_weights, fc3_bias, expert)
            gate = gate.clamp(max=swiglu_limit)
            up = up.clamp(-swiglu_limit, swiglu_limit) + activation_beta
            inner = gate * torch.sigmoid(activation_alpha * gate) * up
        else:
            inner = _ACTIVATIONS[activation_type](inner)
            if fc3_weights is not None:
                inner = inner * _linear(tokens[rows], fc3_weights, fc3_bias, expert)
        said = _linear(inner, fc2_weights, fc2_bias, expert)
        result = result.index_add(0, rows, said * weights[rows, ranks, None].to(said.dtype))
    return result.reshape(x.shape)


def _gate_and_up(inner: Tensor, fusion: int) -> tuple[Tensor, Tensor]:
    if fusion == 1:  # they take turns
        return inner[..., ::2], inner[..., 1::2]
    gate, up = inner.chunk(2, -1)
    return gate, up


def _linear(rows: Tensor, weights: Tensor, bias: Tensor | None, expert: int) -> Tensor:
    return functional.linear(rows, weights[expert], None if bias is None else bias[expert])

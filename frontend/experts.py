"""Mixtures of experts: one operator, MoE of ONNX Runtime, instead of a loop over experts.

transformers hands an expert layer the chosen experts and their weights. The operator chooses
by itself, from logits whose softmax it takes; so it is given the logarithms of the weights,
minus infinity for experts that were not chosen, and its result is scaled by their sum. That
holds for whatever routing the model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_IMPLEMENTATION = "mpqc"
# Of transformers: exports everything, but reads weights for each token.
_GENERAL = "batched_mm"
_PLAIN_GATE = "transformers.integrations.moe"  # module of the gate that most models share
_SILU = ("SiLU", "SiLUActivation")
_OPERATOR = "com.microsoft::MoE"
_GATED_SILU: dict[str, Any] = {
    "activation_type": "swiglu",
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "swiglu_fusion": 1,  # rows of gate and up take turns: the only order that the CPU knows
    "normalize_routing_weights": 1,
}


@contextmanager
def one_operator(model: torch.nn.Module) -> Iterator[None]:
    """Lets each expert layer be traced as one operator, its weights reordered for it.

    What such a layer computes meanwhile has the right shape and no meaning. Layers that are
    more than a gated SiLU are traced as transformers exports them.
    """
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError:  # a transformers without such layers
        yield
        return
    layers: list[Any] = [one for one in model.modules() if _is_experts(one)]
    for layer in layers:
        if _is_plain(layer):
            layer.gate_up_proj.data = _interleaved(layer.gate_up_proj.data)
    ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _forward)
    before = [layer.config._experts_implementation for layer in layers]
    for layer in layers:
        layer.config._experts_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.config._experts_implementation = old


def _forward(layer: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    if not _is_plain(layer):
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        return ALL_EXPERTS_FUNCTIONS[_GENERAL](layer, hidden, index, weights)  # type: ignore[no-any-return]
    weights = weights.to(hidden.dtype)
    count = layer.down_proj.shape[0]
    nothing = hidden.new_full((hidden.shape[0], count), -torch.inf)
    routing = nothing.scatter(-1, index, weights.log())
    said = torch.onnx.ops.symbolic(
        _OPERATOR,
        (hidden, routing, layer.gate_up_proj, None, layer.down_proj),
        {**_GATED_SILU, "k": index.shape[-1]},
        dtype=hidden.dtype,
        shape=hidden.shape,
        version=1,
    )
    return said * weights.sum(-1, keepdim=True)


def _is_experts(module: Any) -> bool:
    return hasattr(module, "is_concatenated") and hasattr(module, "down_proj")


def _is_plain(layer: Any) -> bool:
    """Whether a layer computes ``down(silu(gate x) * up x)`` for each expert."""
    act = getattr(layer, "act_fn", None)
    return (
        type(act).__name__ in _SILU
        and layer.has_gate
        and type(layer)._apply_gate.__module__ == _PLAIN_GATE
        and layer.is_concatenated
        and not (layer.is_transposed or layer.has_bias or layer.has_post_expert_norm)
    )


def _interleaved(weight: Tensor) -> Tensor:
    """Rows of the first and the second half of axis 1, in turn."""
    return torch.stack(weight.chunk(2, dim=1), dim=2).flatten(1, 2)

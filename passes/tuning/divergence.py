"""How far the rounded model's outputs are from the original's, with the gradient."""

from __future__ import annotations

import numpy as np
import torch

Outputs = dict[str, torch.Tensor]


def divergence(
    objective: str, exact: dict[str, np.ndarray], found: Outputs
) -> tuple[float, Outputs]:
    """Returns the divergence of one sample and its gradient with respect to ``found``.

    Args:
        objective: ``logits``: Kullback-Leibler divergence, nats per position. ``regression``:
            half the relative squared error, the mean over the outputs.
        exact: The original's outputs by name.
        found: The outputs of the rounded model by name.
    """
    total, gradients = 0.0, {}
    for name, output in found.items():
        leaf = output.detach().float().requires_grad_()
        reference = torch.from_numpy(np.ascontiguousarray(exact[name])).float()
        kind = _kl if objective == "logits" else _relative
        loss = kind(reference, leaf) / len(found)
        (gradient,) = torch.autograd.grad(loss, leaf)
        total += float(loss.detach())
        gradients[name] = gradient.to(output.dtype)
    return total, gradients


def _kl(exact: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    exact = exact.reshape(-1, exact.shape[-1]).log_softmax(-1)
    found = found.reshape(-1, found.shape[-1]).log_softmax(-1)
    return torch.nn.functional.kl_div(found, exact, reduction="batchmean", log_target=True)


def _relative(exact: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    energy = exact.square().sum().clamp_min(1e-24)
    return 0.5 * (found - exact).square().sum() / energy

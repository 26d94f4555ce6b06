"""How far the rounded model's outputs are from the original's, with the gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .divergence import MASKED

Outputs = dict[str, torch.Tensor]
_RULED_OUT = -1e4  # no float32 probability is this small
_AT_ONCE = 16  # positions whose logits fit into a processor's cache


def divergence(
    objective: str,
    exact: dict[str, np.ndarray],
    found: Outputs,
    real: Callable[[tuple[int, ...]], np.ndarray] | None = None,
) -> tuple[float, Outputs]:
    """Returns the divergence of one sample and its gradient with respect to ``found``.

    Args:
        objective: ``logits``: Kullback-Leibler divergence, nats per position. ``regression``:
            half the relative squared error, the mean over the outputs.
        exact: The original's outputs by name.
        found: The outputs of the rounded model by name.
        real: Tells which places of a shape are not padding; others do not count.
    """
    total, gradients = 0.0, {}
    kind = _kl if objective == "logits" else _relative
    for name, output in found.items():
        reference = torch.from_numpy(np.asarray(exact[name], order="C")).to(output.device)
        width = output.shape[-1] if output.ndim else 1
        rows = _real_rows(output, real)
        given = output.detach().reshape(-1, width)
        loss, part = kind(reference.reshape(-1, width)[rows], given[rows])
        total += loss / len(found)
        gradient = (part / len(found)).to(output.dtype)
        if not isinstance(rows, slice):
            gradient = torch.zeros_like(given).index_put_((rows,), gradient)
        gradients[name] = gradient.reshape(output.shape)
    return total, gradients


def _real_rows(
    output: torch.Tensor, real: Callable[[tuple[int, ...]], np.ndarray] | None
) -> torch.Tensor | slice:
    """Returns the rows of an output, all of whose leading axes are flattened, that count."""
    places = np.ones(1) if real is None else real(tuple(output.shape[:-1]))
    if places.all():
        return slice(None)
    return torch.from_numpy(places.reshape(-1)).to(output.device)


def _kl(exact: torch.Tensor, found: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Returns the mean over positions; its gradient is the difference of probabilities."""
    total, parts = 0.0, []
    pairs = zip(torch.split(exact, _AT_ONCE), torch.split(found, _AT_ONCE), strict=True)
    for one, other in pairs:
        wanted, got = _log_shares(one), _log_shares(other)
        probability = wanted.exp()
        total += float(wanted.sub_(got).mul_(probability).sum())
        parts.append(got.exp_().sub_(probability).div_(len(exact)))
    return total / max(len(exact), 1), torch.cat(parts)


def _log_shares(logits: torch.Tensor) -> torch.Tensor:
    """Returns log-probabilities, finite also for entries that a model rules out."""
    return logits.float().log_softmax(-1).clamp_min_(_RULED_OUT)


def _relative(exact: torch.Tensor, found: torch.Tensor) -> tuple[float, torch.Tensor]:
    real = exact.abs() < MASKED
    energy = exact.float().where(real, 0.0).square().sum().clamp_min(1e-24)
    difference = (found.float() - exact.float()).where(real, 0.0)
    return float(0.5 * difference.square().sum() / energy), difference.div_(energy)

"""Rounding rows one after the other, each making up for errors of the rows before.

For ``C = E[g g^T]`` between rows and ``H`` between columns, errors ``D`` cost
``tr(C D H D^T)`` (the Kronecker-factored Fisher information). With ``C = M^T diag(d) M``, M
unit lower triangular in the order in which rows are rounded, that is ``sum_r d_r e_r H e_r^T``
with

    e_r = D_r + sum_{s<r} M_rs D_s

so each row is rounded not to its weights but to these less what the rows before ask for. It is
what GPTQ does between columns (Frantar et al. 2023), on both sides as in YAQA (Tseng et al.
2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .doubles import with_doubles
from .factor import factor_type
from .gptq import Rounded

_DAMPING = 0.1  # of the mean diagonal; rows that hardly count cannot make up for much
# Rows rounded at a time, which do not make up for each other: this many, or this share of all.
# Fewer take longer and gain little: with 16, 8 and 4 parts instead of 32, units of SmolLM2 at
# 3 bits are predicted to lose 0.2, 1.2 and 3.7 % more.
_TOGETHER, _SHARE = 32, 16


def round_coupled(
    weight: torch.Tensor,
    coupling: torch.Tensor,
    classes: Sequence[torch.Tensor],
    rounders: Sequence[Callable[[torch.Tensor], Rounded]],
    groups: Sequence[int],
) -> list[Rounded]:
    """Rounds classes of rows, the first ones first, important rows of a class before others.

    Later rows make up for earlier ones, so the coarsest class should come first.

    Args:
        weight: Float32, rows x columns.
        coupling: Rows x rows, symmetric, with a positive mean diagonal.
        classes: Indices of rows; every row is in one class.
        rounders: For each class what rounds some of its rows.
        groups: For each class how many columns share a scale.

    Returns:
        For every class its rows, in the order of their indices there.
    """
    importance = coupling.diagonal()
    ranks = [importance[rows].argsort(descending=True, stable=True) for rows in classes]
    order = torch.cat([rows[rank] for rows, rank in zip(classes, ranks, strict=True)])
    asked = _feedback(coupling[order][:, order])
    together = max(_TOGETHER, len(order) // _SHARE)
    errors = weight.new_empty(len(order), weight.shape[1])
    result, start = [], 0
    for rows, rank, rounder, group in zip(classes, ranks, rounders, groups, strict=True):
        parts = []
        for some in torch.split(rank, together):
            stop = start + len(some)
            exact = weight[rows[some]]
            wanted = exact + _wanted(asked[start:stop, :stop], errors[:start])
            parts.append(rounder(wanted))
            errors[start:stop] = parts[-1].dequantize(group) - exact
            start = stop
        result.append(_in_order(parts, rank))
    return result


def _feedback(coupling: torch.Tensor) -> torch.Tensor:
    """Returns M, unit lower triangular, of ``coupling = M^T diag(d) M``, damped."""
    device, coupling = coupling.device, with_doubles(coupling)
    damping = _DAMPING * float(coupling.diagonal().mean(dtype=torch.float64))
    kind = factor_type(len(coupling), _DAMPING)
    eye = torch.eye(len(coupling), dtype=kind, device=coupling.device)
    while True:
        damped = coupling.to(kind) + eye * damping
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(info) == 0:
            break
        damping *= 2
    upper = lower.flip(0, 1)
    feedback: torch.Tensor = (upper / upper.diagonal()).T.float().to(device)
    return feedback


def _wanted(asked: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Returns what rows should be off by, given the errors of those before.

    Args:
        asked: The rows of M, up to and with their own columns.
        errors: Rows before x columns.
    """
    before = len(errors)
    known = asked[:, :before] @ errors
    solved: torch.Tensor = torch.linalg.solve_triangular(
        asked[:, before:], -known, upper=False, unitriangular=True
    )
    return solved


def _in_order(parts: Sequence[Rounded], rank: torch.Tensor) -> Rounded:
    """Puts rows that were rounded by rank back to where they belong."""
    places = rank.argsort()
    return Rounded(
        torch.cat([part.codes for part in parts])[places],
        torch.cat([part.scales for part in parts])[places],
    )

"""Hessians of ``1/2 |dY|^2``, where ``Y`` is what an attention gives after its output product.

With heads ``h``, weights ``A_h = softmax(...)``, values ``V_h`` and the columns ``W_O,h`` of
the output weight: ``Y = sum_h A_h V_h W_O,h^T``. To first order in the error of one
projection, with ``x_t`` the tokens that it multiplies::

    output   H = sum_t o_t o_t^T                                  o = [A_1 V_1, A_2 V_2, ...]
    values   H = sum_hh' (A_h X)^T (A_h' X)  (x)  W_O,h^T W_O,h'  A does not depend on V
    queries  H = sum_t x_t x_t^T  (x)  G_t^T G_t                  G_t = dY_t / dq_t
    keys     H ~ sum_s x_s x_s^T  (x)  sum_t D_ts^T D_ts          D_ts = dY_t / dk_s

for the rows of one head; ``h`` and ``h'`` are the query heads that share one of values. All
are exact but the keys, which lose the terms between different tokens ``s``. Rows of a head
share the mean of their blocks on the diagonal: left of ``(x)``, times a number for each token.

Source: Guan et al., APTQ (arXiv 2402.14866), whose idea this is; the forms are derived from
the definition, see docs/attention.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..execution.samples import Values
from .attention_core import Core, Wiring


def value_responses(
    core: Core, wiring: Wiring, values: Values, inputs: torch.Tensor
) -> torch.Tensor:
    """Returns ``A_h X`` for every query head: heads x tokens x columns, without padding.

    The core is linear in the values, so it mixes columns of X in their place, as many at once
    as a head has channels.

    Args:
        core: The attention.
        wiring: Its channels.
        values: A run of the graph.
        inputs: What the product of the values multiplies, places x columns, with padding.
    """
    attention, at = core.attention, core.place(2)
    made = core.given(values)
    flat = made[at].reshape(-1, made[at].shape[-1]).clone()
    flat[:, wiring.values.reshape(-1)] = 0
    found = []

    def mixed(stand_in: torch.Tensor) -> torch.Tensor:
        given = [*made[:at], stand_in.reshape_as(made[at]), *made[at + 1 :]]
        result = values.real_rows(core.run(values, given)[1])
        return result.reshape(len(result), attention.heads, -1).transpose(0, 1)

    with torch.no_grad():
        rest = mixed(flat)
        for part in torch.split(inputs, wiring.values.shape[1], dim=1):
            stand_in = flat.clone()
            for channels in wiring.values:
                stand_in[:, channels[: part.shape[1]]] = part.to(flat.dtype)
            found.append((mixed(stand_in) - rest)[..., : part.shape[1]].float())
    return torch.cat(found, dim=2)


def every_direction(mixer: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns directions that give the exact squares for queries: size x heads x size.

    They are the rows of ``R_h`` with ``R_h^T R_h = W_O,h^T W_O,h``.

    Args:
        mixer: The output weight, rows x (heads * size).
        heads: Number of query heads.
    """
    split = mixer.reshape(len(mixer), heads, -1).transpose(0, 1)
    _, triangle = torch.linalg.qr(split, mode="reduced")
    size = split.shape[2]
    missing = size - triangle.shape[1]
    return torch.nn.functional.pad(triangle, (0, 0, 0, missing)).transpose(0, 1)


def gradients(
    core: Core,
    values: Values,
    mixer: torch.Tensor,
    probes: int,
    generator: torch.Generator,
) -> Iterator[list[torch.Tensor]]:
    """Yields ``d <r, Y> / dy`` for one direction r after the other.

    Args:
        core: The attention.
        values: A run of the graph.
        mixer: The output weight, rows x (heads * size).
        probes: How many random signs r to follow; 0 follows every direction of each head,
            with random signs for the tokens, which makes the sum of squares exact for queries.
        generator: Source of the signs.

    Yields:
        For each value of ``made``: tokens x channels.
    """
    made = [one.detach().requires_grad_() for one in core.given(values)]
    mixed = values.real_rows(core.run(values, made)[1])
    for direction in _directions(mixed, core.attention.heads, mixer, probes, generator):
        found = torch.autograd.grad(mixed, made, direction, retain_graph=True)
        yield [one.reshape(-1, one.shape[-1]).float() for one in found]


def squared_gradients(
    core: Core,
    values: Values,
    mixer: torch.Tensor,
    probes: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Returns, for each value of ``made``, ``sum_t |dY_t / dy_sn|^2``: tokens x channels.

    That is ``|G_s|^2`` by channel for queries and ``sum_t |D_ts|^2`` for keys. The arguments
    are those of ``gradients``.
    """
    total = [mixer.new_zeros(1) for _ in core.made]
    for found in gradients(core, values, mixer, probes, generator):
        total = [sum_ + one.square() for sum_, one in zip(total, found, strict=True)]
    return [one / max(probes, 1) for one in total]


def _directions(
    mixed: torch.Tensor,
    heads: int,
    mixer: torch.Tensor,
    probes: int,
    generator: torch.Generator,
) -> Iterator[torch.Tensor]:
    """Yields what to differentiate ``mixed`` along: tokens x (heads * size)."""
    tokens, device = len(mixed), mixed.device
    if not probes:
        for row in every_direction(mixer, heads):
            yield (
                (_signs(generator, tokens, 1, 1).to(device) * row)
                .reshape(tokens, -1)
                .to(mixed.dtype)
            )
    for _ in range(probes):
        yield (_signs(generator, tokens, len(mixer)).to(device) @ mixer).to(mixed.dtype)


def _signs(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1

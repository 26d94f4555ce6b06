"""Finds every attention of a model."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from . import decomposed, fused
from .binding import Attention, NoMatchError, Unmatched
from .surroundings import Surroundings


@dataclass(frozen=True)
class Found:
    """The attentions of a graph, in execution order.

    Attributes:
        bound: Attentions whose units are known.
        unmatched: Every other softmax and fused operator, with the reason.
    """

    bound: tuple[Attention, ...]
    unmatched: tuple[Unmatched, ...]


def find_attention(model: ir.Model) -> Found:
    """Binds every softmax and every fused attention of the main graph to its units.

    Queries and keys may be turned, normalized and scaled on their way, so long as each comes
    from one product. Values must be linear in theirs, and only moves may stand between the
    heads and the product that mixes them.
    """
    around = Surroundings(model)
    bound: list[Attention] = []
    unmatched: list[Unmatched] = []
    for node in model.graph:
        try:
            if fused.is_fused(node):
                bound.append(fused.bind(node, around))
            elif node.op_type == "Softmax":
                bound.append(decomposed.bind(node, around))
        except NoMatchError as error:
            unmatched.append(Unmatched(node, str(error)))
    return Found(tuple(bound), tuple(unmatched))

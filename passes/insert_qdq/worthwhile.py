"""Which convolutions are worth what their integers lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from .regions import integer_convolutions, rounded_result

_INTEGER_TIME = 0.35  # of a convolution in floats, as ONNX Runtime computes it with VNNI
_NO_GAIN = 0.95  # share of the time from which on integers are not worth anything
_CANDIDATES = 8  # of the costliest activations, from which one is taken at a time


def worthwhile(
    graph: ir.Graph,
    work: Mapping[ir.Node, float],
    losses: Mapping[ir.Value, float],
    base: float,
) -> list[ir.Node]:
    """Returns the convolutions that are to compute in integers.

    The costliest activations stay in float one after the other, and with each the convolutions
    that make it and read it, as long as that takes a larger share from the loss than it adds
    to the time; both are shares of what it would be with all convolutions in integers.

    Args:
        graph: The graph.
        work: By convolution that an integer kernel could serve: its multiplications.
        losses: What rounding each activation costs.
        base: The loss without rounding any.
    """
    chosen, rounded = integer_convolutions(graph, work)
    least_time, most_loss = _time(chosen, work), base + _loss(rounded, losses)
    while chosen:
        fewer = _without_the_costliest(graph, chosen, work, losses, most_loss / least_time)
        if fewer is None:
            break
        chosen = fewer
    whole = sum(work.values())
    return chosen if _time(chosen, work) < _NO_GAIN * whole else []


def _without_the_costliest(
    graph: ir.Graph,
    chosen: Sequence[ir.Node],
    work: Mapping[ir.Node, float],
    losses: Mapping[ir.Value, float],
    price: float,
) -> list[ir.Node] | None:
    """Returns the convolutions that are left when one more activation stays in float.

    Args:
        graph: The graph.
        chosen: Those that compute in integers so far.
        work: Multiplications of all.
        losses: What rounding each activation costs.
        price: Loss that a multiplication has to save.
    """
    rounded = integer_convolutions(graph, chosen)[1]
    time, loss = _time(chosen, work), _loss(rounded, losses)
    best, found = price, None
    for value in sorted(rounded, key=lambda one: -losses.get(one, 0.0))[:_CANDIDATES]:
        left = [node for node in chosen if value not in (node.inputs[0], rounded_result(node))]
        if len(left) == len(chosen):
            continue
        able, fewer = integer_convolutions(graph, left)
        saved, more = loss - _loss(fewer, losses), _time(able, work) - time
        if saved > best * more:
            best, found = saved / more, able
    return found


def _time(chosen: Sequence[ir.Node], work: Mapping[ir.Node, float]) -> float:
    whole = sum(work.values())
    return whole - (1 - _INTEGER_TIME) * sum(work[node] for node in chosen)


def _loss(rounded: Mapping[ir.Value, ir.Value], losses: Mapping[ir.Value, float]) -> float:
    return sum(losses.get(value, 0.0) for value in rounded)

"""Which convolutions are worth what their integers lose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from .regions import conversions, integer_convolutions, rounded_result

_NO_GAIN = 0.95  # share of the time from which on integers are not worth anything
_CANDIDATES = 8  # of the costliest activations, from which one is taken at a time


@dataclass(frozen=True)
class Worth:
    """What integers cost and save.

    Attributes:
        graph: The graph.
        work: By convolution that an integer kernel could serve: its multiplications.
        losses: What rounding each activation costs.
        sizes: How many numbers each of them has.
        base: The loss without rounding any.
        integer_time: Time of a convolution of integers, relative to one of floats.
        conversion: Multiplications that take as long as one number to codes or back.
    """

    graph: ir.Graph
    work: Mapping[ir.Node, float]
    losses: Mapping[ir.Value, float]
    sizes: Mapping[ir.Value, float]
    base: float
    integer_time: float
    conversion: float

    def chosen(self) -> list[ir.Node]:
        """Returns the convolutions that are to compute in integers.

        The costliest activations stay in float one after the other, and with each the
        convolutions that make it and read it, as long as that takes a larger share from the
        loss than it adds to the time; both are shares of what it would be with all
        convolutions in integers.
        """
        now = _Choice.of(self, self.work)
        price = (self.base + now.loss) / max(now.time, 1.0)
        while now.nodes:
            fewer = self._without_the_costliest(now, price)
            if fewer is None:
                break
            now = fewer
        return now.nodes if now.time < _NO_GAIN * sum(self.work.values()) else []

    def _without_the_costliest(self, now: _Choice, price: float) -> _Choice | None:
        """Returns what is left when one more activation stays in float.

        Args:
            now: What computes in integers so far.
            price: Loss that has to be saved for the time of a multiplication.
        """
        best, found = 0.0, None
        costly = sorted(now.rounded, key=lambda one: -self.losses.get(one, 0.0))
        for value in costly[:_CANDIDATES]:
            left = [
                node
                for node in now.nodes
                if value not in (node.inputs[0], rounded_result(node))
            ]
            if len(left) == len(now.nodes):
                continue
            fewer = _Choice.of(self, left)
            gain = now.loss - fewer.loss - price * (fewer.time - now.time)
            if gain > best:
                best, found = gain, fewer
        return found


@dataclass(frozen=True)
class _Choice:
    """Convolutions in integers, the activations that are rounded for them, loss and time."""

    nodes: list[ir.Node]
    rounded: Mapping[ir.Value, ir.Value]
    loss: float
    time: float

    @classmethod
    def of(cls, worth: Worth, nodes: Collection[ir.Node]) -> _Choice:
        able, rounded = integer_convolutions(worth.graph, nodes)
        saved = (1 - worth.integer_time) * sum(worth.work[node] for node in able)
        crossing = conversions(able, rounded)
        numbers = sum(count * worth.sizes.get(one, 0.0) for one, count in crossing.items())
        time = sum(worth.work.values()) - saved + worth.conversion * numbers
        return cls(able, rounded, sum(worth.losses.get(one, 0.0) for one in rounded), time)

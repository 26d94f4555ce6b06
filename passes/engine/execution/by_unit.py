"""Work on one unit at a time: in threads of this process, or wherever its workers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir

from ....ir import Unit
from ..pipeline.base import Item, PassContext, State
from .handover import check_weight, weight_checksum
from .parallel import for_each

T = TypeVar("T")


def each_unit(
    work: Callable[[Unit, PassContext], T],
    units: Sequence[Unit],
    model: ir.Model,
    context: PassContext,
    what: str,
    *,
    need: Callable[[Unit], int] | None = None,
    cost: Callable[[Unit], float] | None = None,
) -> list[T]:
    """Returns ``[work(unit, context) for unit in units]``, the same bytes wherever it runs.

    Args:
        work: What to do with one unit. It changes neither the graph nor the arrays, for in
            another process they are copies; see ``Crew.each`` for what it may be.
        units: Quantizable units of ``model``.
        model: The graph.
        context: The context of the pass.
        what: What the user is told meanwhile.
        need: Estimates the bytes that a call takes while it runs; without it, the memory has
            room for all.
        cost: Estimates what a call takes, in any unit; by default as ``need``.
    """
    if context.workers is None:
        return for_each(
            lambda unit: work(unit, context),
            units,
            context.progress,
            what,
            need=need,
            device=context.device,
            cost=cost,
        )
    size = need or _weight_bytes
    weigh = cost or size
    items = [
        Item(one.name, (one.name, weight_checksum(one)), size(one), max(weigh(one), 1e-9))
        for one in units
    ]
    found = {}
    with (
        context.workers.share(State(model, context), what) as crew,
        context.progress.bar(what, len(items), sum(item.cost for item in items)) as bar,
    ):
        for at, result in crew.each(_OnUnit(work), items):
            found[at] = result
            bar.advance(items[at].cost)
    return [found[at] for at in range(len(items))]


@dataclass(frozen=True)
class _OnUnit:
    """Finds the unit that work is for in the state of the process that runs it."""

    work: Callable[[Unit, PassContext], Any]

    def __call__(self, state: State, argument: tuple[str, int]) -> Any:
        name, checksum = argument
        unit = state.units[name]
        check_weight(unit, checksum)
        return self.work(unit, state.context)


def _weight_bytes(unit: Unit) -> int:
    return 4 * unit.size

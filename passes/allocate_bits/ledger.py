"""The bytes of a model, counted alike before the long work and when it is done."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from ...ir import (
    Capabilities,
    InfeasibleBudget,
    LeftInFloat,
    Settled,
    Unit,
    find_units,
    note_of,
)
from ...ir.analysis.offered import missing
from ..engine.emission.cost import input_bytes, unit_bytes, unpacking_bytes

_MOST_NAMED = 3


@dataclass(frozen=True)
class Ledger:
    """The fixed storage of all units, and the rest of the budget for the choice.

    Attributes:
        budget: Stored bits per weight that were asked for; None for no bound.
        weights: All weights, those that were stored for good by earlier passes included.
        in_float: Units that stay in float, the largest first.
        settled_bytes: Of what earlier passes have stored for good.
        extra_bytes: Of what units store beside codes and scales, whatever their options.
    """

    budget: float | None
    weights: int
    in_float: tuple[Unit, ...]
    settled_bytes: int
    extra_bytes: int

    @classmethod
    def of(
        cls,
        model: ir.Model,
        in_codes: Collection[Unit],
        table: Capabilities,
        budget: float | None,
    ) -> Ledger:
        """Counts a model; some units will be stored in codes, all others as they are."""
        settled = note_of(model, Settled) or Settled(0, 0)
        units = find_units(model)
        in_float = [unit for unit in units if unit not in in_codes]
        return cls(
            budget,
            settled.weights + sum(unit.size for unit in units),
            tuple(sorted(in_float, key=lambda unit: (-unit.tensor.nbytes, unit.name))),
            settled.bytes,
            sum(unit_bytes(unit, table) + input_bytes(unit, table) for unit in in_codes)
            + unpacking_bytes(in_codes, table),
        )

    @property
    def float_bytes(self) -> int:
        """Bytes of units that stay in float."""
        return sum(int(unit.tensor.nbytes) for unit in self.in_float)

    @property
    def fixed_bytes(self) -> int:
        """Bytes that no choice of options changes."""
        return self.float_bytes + self.settled_bytes + self.extra_bytes

    @property
    def room(self) -> int | None:
        """Bytes that the budget leaves for codes and scales; None for no bound."""
        if self.budget is None:
            return None
        return int(self.budget * self.weights / 8) - self.fixed_bytes

    def bits(self, total: int) -> float:
        """Returns bytes as bits per weight."""
        return total * 8 / self.weights

    def check(
        self, needed: int, method: str, table: Capabilities, *, at_least: bool = False
    ) -> None:
        """Refuses a choice that does not fit.

        Args:
            needed: Bytes of its codes and scales.
            method: Who chose.
            table: What the target can do.
            at_least: Whether it may turn out to take more.

        Raises:
            InfeasibleBudget: It does not fit; the smallest budget that works is named.
        """
        if self.room is None or needed <= self.room:
            return
        least = math.ceil(self.bits(self.fixed_bytes + needed) * 1000) / 1000
        by_method = "" if method == "budget" else f" with method={method}"
        floats = self._why_in_float(table)
        why = f"; {self.float_bytes} bytes of it stay in float: {floats}" if floats else ""
        raise InfeasibleBudget(
            f"{self.budget} stored bits per weight cannot be reached: the smallest{by_method}"
            f" is {'at least ' if at_least else ''}{least:.3f}{why}",
            hint=f"ask for --budget {least:.3f} or more, or for --as-small-as-possible",
            smallest=least,
        )

    def _why_in_float(self, table: Capabilities) -> str:
        """Returns the names of the largest units that stay in float, with their reasons."""
        named = [
            f"{unit.name!r} because {_why(unit, table)}"
            for unit in self.in_float[:_MOST_NAMED]
        ]
        more = len(self.in_float) - len(named)
        return "; ".join([*named, f"and {more} more"] if more > 0 else named)


def _why(unit: Unit, table: Capabilities) -> str:
    note = note_of(unit.notes, LeftInFloat)
    return note.why if note is not None else unit.reason or missing(unit, table)

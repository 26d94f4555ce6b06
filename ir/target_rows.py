"""What a capability table claims, row by row: to be listed, and to be tried."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from .capabilities import Capabilities, Evidence, Kernel

PRODUCT = "product"
INTEGER_PRODUCT = "integer product"
INTEGER_CONVOLUTION = "integer convolution"
CONVOLUTION = "convolution"
LOOKUP = "lookup"
ARRAY = "array"
EXPANSION = "expansion"
BY_ROW = 0  # the size of a group that is a whole row


@dataclass(frozen=True)
class Row:
    """One thing that a target is said to run.

    Attributes:
        kind: What it does, one of the words above.
        bits: Width of a code.
        groups: Columns that share a scale, each size that is said to work; 0 for a whole row.
        offered: Whether the allocator may choose it.
        time: Time of one token relative to the float matmul; None where it was not measured.
        notes: What shapes and hardware it is for, and what else there is to know.
        evidence: How it is known; None in tables that were not read from a file.
    """

    kind: str
    bits: int
    groups: tuple[int, ...]
    offered: bool
    time: float | None
    notes: str
    evidence: Evidence | None

    @property
    def fast(self) -> bool | None:
        """Whether it is quicker than float32, measured or read; None where nothing tells."""
        if self.time is not None:
            return self.time < 1
        return True if self.kind == PRODUCT and self.offered else None

    @property
    def name(self) -> str:
        """The row in words, such as ``product, 4 bits, groups of 32``."""
        return f"{self.kind}, {self.bits} bits, {self.grouping}"

    @property
    def grouping(self) -> str:
        """Its groups in words."""
        if self.groups == (BY_ROW,):
            return "one scale a row"
        return f"groups of {', '.join(map(str, self.groups))}"


def rows_of(table: Capabilities) -> tuple[Row, ...]:
    """Returns everything that a table claims, products first."""
    found = [row for kernel in table.kernels for row in _product_rows(kernel)]
    beside = [
        (INTEGER_PRODUCT, "integer", table.integer_bits),
        (INTEGER_CONVOLUTION, "integer", table.integer_bits),
        (CONVOLUTION, "convolution", table.convolution_bits),
    ]
    for kind, name, widths in beside:
        found += [_beside(table, kind, name, bits, (BY_ROW,)) for bits in widths]
    for bits in table.lookup_bits:
        found.append(_beside(table, LOOKUP, "lookup", bits, _lookup_groups(table, bits)))
    for bits in table.array_bits:
        groups = tuple(sorted(table.array_groups(bits))) or (BY_ROW,)
        found.append(_beside(table, ARRAY, "array", bits, groups))
    expanding = table.expanding
    found += [_beside(table, EXPANSION, "expanding", bits, (BY_ROW,)) for bits in expanding]
    return tuple(found)


def _lookup_groups(table: Capabilities, bits: int) -> tuple[int, ...]:
    """Returns the groups that a table may have whose rows all of them divide."""
    columns = 3 * lcm(*(one for kernel in table.kernels for one in kernel.groups))
    options = [one for one in table.lookup_options(columns) if one.bits == bits]
    return tuple(BY_ROW if one.group == columns else one.group for one in options)


def _beside(
    table: Capabilities, kind: str, name: str, bits: int, groups: tuple[int, ...]
) -> Row:
    return Row(kind, bits, groups, True, None, "", table.evidence.get(name))


def _product_rows(kernel: Kernel) -> list[Row]:
    """Returns a row for each size of groups that a kernel takes."""
    times = dict(zip(kernel.legal, kernel.times, strict=False))
    sizes = sorted({*kernel.groups, *kernel.legal})
    rows = [_product(kernel, one, one in kernel.groups, times.get(one)) for one in sizes]
    return [*rows, _product(kernel, BY_ROW, True, None)] if kernel.per_row else rows


def _product(kernel: Kernel, group: int, offered: bool, time: float | None) -> Row:
    evidence = kernel.evidence
    if time is None and evidence is not None and evidence.probed:
        time = kernel.time
    multiples = (("rows", kernel.row_multiple), ("columns", kernel.column_multiple))
    shapes = [f"{name} in {count}s" for name, count in multiples if count > 1]
    notes = "; ".join(filter(None, (*shapes, kernel.hardware, kernel.note)))
    return Row(PRODUCT, kernel.bits, (group,), offered, time, notes, evidence)

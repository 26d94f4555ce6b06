"""mpqc targets: what each target can run, and how that is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..backend.onnxruntime.capabilities import load, targets
from ..backend.onnxruntime.installation import target_problem
from ..ir import Capabilities
from ..ir.target_rows import BY_ROW, Row, rows_of
from .table import aligned

_HEAD = ("does", "bits", "groups of", "used", "fast", "time", "notes", "known")
_READY = "ready"
_FAST = {True: "yes", False: "no", None: ""}
_LEGEND = (
    "used: the allocator may choose it. fast: quicker than float32.",
    "time: one token, float32 takes 1. Empty: not measured.",
)


@dataclass(frozen=True)
class Target:
    """A target, with everything that its table says.

    Attributes:
        table: The table.
        problem: Why it does not work on this machine; None if it does.
    """

    table: Capabilities
    problem: str | None

    @property
    def rows(self) -> tuple[Row, ...]:
        """What it can run."""
        return rows_of(self.table)

    @property
    def versions(self) -> str:
        """The runtimes and their versions, in words."""
        return ", ".join(f"{one} or newer" for one in (self.table.runtime, *self.table.also))

    def lines(self) -> Iterator[str]:
        """Yields one screen about the target."""
        yield f"{self.table.target}: {self.versions}"
        yield from aligned(
            [
                ("  provider", self.table.provider),
                ("  hardware", self.table.hardware),
                ("  written by", self.table.lowering),
                ("  here", self.problem or _READY),
            ]
        )
        yield ""
        known = list(dict.fromkeys(str(row.evidence) for row in self.rows))
        yield from aligned([_HEAD, *(_cells(row, known) for row in self.rows)])
        yield from ("", *_LEGEND)
        for place, evidence in enumerate(known, start=1):
            yield f"[{place}] {evidence}"

    def facts(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        table = self.table
        return {
            "target": table.target,
            "runtime": table.runtime,
            "also": table.also,
            "provider": table.provider,
            "hardware": table.hardware,
            "lowering": table.lowering,
            "problem": self.problem,
            "rows": [_row_facts(row) for row in self.rows],
        }


def find_targets(name: str | None) -> list[Target]:
    """Returns the target of that name, or all.

    Raises:
        UsageError: There is no such target.
    """
    return [Target(load(one), target_problem(one)) for one in ([name] if name else targets())]


def overview(found: Sequence[Target]) -> Iterator[str]:
    """Yields a line for each target."""
    rows = [("target", "runtime", "provider", "bits of products", "here")]
    for one in found:
        bits = ", ".join(str(kernel.bits) for kernel in one.table.kernels)
        here = one.problem or _READY
        rows.append((one.table.target, one.versions, one.table.provider, bits, here))
    yield from aligned(rows)
    yield ""
    yield f"mpqc targets {found[0].table.target} lists what that one can run"


def _cells(row: Row, known: list[str]) -> tuple[str, ...]:
    groups = "a row" if row.groups == (BY_ROW,) else ", ".join(map(str, row.groups))
    return (
        row.kind,
        str(row.bits),
        groups,
        "yes" if row.offered else "no",
        _FAST[row.fast],
        "" if row.time is None else f"{row.time:g}",
        row.notes,
        f"[{known.index(str(row.evidence)) + 1}]",
    )


def _row_facts(row: Row) -> dict[str, Any]:
    evidence = row.evidence
    assert evidence is not None, "the loader refuses rows without"
    return {
        "kind": row.kind,
        "bits": row.bits,
        "groups": ["row" if one == BY_ROW else one for one in row.groups],
        "used": row.offered,
        "fast": row.fast,
        "time": row.time,
        "notes": row.notes,
        "probed": evidence.probed,
        **{name: value for name, value in dataclasses.asdict(evidence).items() if value},
    }

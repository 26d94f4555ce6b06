"""Which machine did how much of a piece of work, and what it took there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WORKERS = "workers"  # in the report of a run


@dataclass(frozen=True)
class WorkDone:
    """What a worker sends back.

    Attributes:
        result: What the work returned.
        machine: The address of the machine.
        process: The worker's process there.
        seconds: Wall-clock time, reading the state included.
        peak: Most bytes that the process has held so far, mapped files included.
    """

    result: Any
    machine: str
    process: int
    seconds: float
    peak: int


@dataclass
class WorkerFacts:
    """What workers did, by machine and process.

    Attributes:
        done: Pieces, seconds and peak memory of each process.
    """

    done: dict[tuple[str, int], tuple[int, float, int]] = field(default_factory=dict)

    def add(self, one: WorkDone) -> None:
        """Counts one piece of work."""
        who = (one.machine, one.process)
        pieces, seconds, peak = self.done.get(who, (0, 0.0, 0))
        self.done[who] = (pieces + 1, seconds + one.seconds, max(peak, one.peak))

    def lines(self, what: str) -> Iterator[str]:
        """Yields a line for each machine, for the user to see when ``what`` is over."""
        for row in self._rows():
            yield (
                f"{what}: {row['machine']}: {row['pieces']} pieces in {row['processes']}"
                f" processes, {row['seconds']:.1f} s, at most"
                f" {row['peak_memory'] / 2**20:.0f} MiB each"
            )

    def report(self, what: str, report: dict[str, Any]) -> None:
        """Adds what ``mpqc.json`` says of it."""
        known = report.setdefault(WORKERS, {})
        if not isinstance(known, dict):  # of a dump that somebody edited
            known = report[WORKERS] = {}
        known[what] = self._rows()

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for machine in sorted({machine for machine, _ in self.done}):
            here = [one for (where, _), one in sorted(self.done.items()) if where == machine]
            rows.append(
                {
                    "machine": machine,
                    "processes": len(here),
                    "pieces": sum(pieces for pieces, _, _ in here),
                    "seconds": round(sum(seconds for _, seconds, _ in here), 3),
                    "peak_memory": max(peak for _, _, peak in here),
                }
            )
        return rows

"""Tries every row of a capability table on this machine: is it right, and is it fast?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ...ir import Capabilities, MpqcError
from ...ir.target_rows import PRODUCT, Row, rows_of
from .capabilities import installed_runtime_problem
from .row_models import float_product, row_model
from .row_parts import RowModel
from .runner import RuntimeSession, open_session, optimized_ops

RIGHT, WRONG, REFUSED, NOT_HERE = "right", "wrong", "refused", "cannot be tried here"
_SIZE = 1024  # rows and columns of what is timed: more than the call takes
_SECONDS = 0.05


@dataclass(frozen=True)
class Probe:
    """What became of one row, in one of its groups.

    Attributes:
        row: The row.
        group: Columns that share a scale; 0 for a whole row.
        verdict: ``right``, ``wrong``, ``refused`` or ``cannot be tried here``.
        detail: What is wrong, or why it was refused; empty for what is right.
        error: Relative error of what it computed; None where it did not run.
        time: Time of one token relative to the float32 product; None where it was not timed.
    """

    row: Row
    group: int
    verdict: str
    detail: str = ""
    error: float | None = None
    time: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the runtime does not do what the row says."""
        return self.verdict in (WRONG, REFUSED)

    @property
    def slow(self) -> bool:
        """Whether it was timed, offered for its speed, and slower than float32."""
        return self.time is not None and self.time > 1 and self.row.offered

    @property
    def name(self) -> str:
        """The row in words, with the group that was tried."""
        if self.row.groups == (self.group,):
            return self.row.name
        return f"{self.row.kind}, {self.row.bits} bits, groups of {self.group}"

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}{f' ({self.detail})' if self.detail else ''}"


def probe(
    table: Capabilities, *, timed: bool = False, problem: str | None = None
) -> tuple[Probe, ...]:
    """Tries every row of ``table``, on one thread.

    Args:
        table: The table.
        timed: Whether to time products, which takes a few seconds.
        problem: Why the runtime cannot run here; by default that is asked.

    Returns:
        A probe for each group of each row; an error of the machine or a model that is refused
        is in it.
    """
    wanted = [(row, group) for row in rows_of(table) for group in row.groups]
    problem = problem or installed_runtime_problem(table.target)
    if problem is not None:
        return tuple(Probe(row, group, NOT_HERE, problem) for row, group in wanted)
    base = _float_seconds(table) if timed else None
    return tuple(_probe(row, group, table, base) for row, group in wanted)


def _probe(row: Row, group: int, table: Capabilities, base: float | None) -> Probe:
    try:
        made = row_model(row, group, table)
        error = _error(made, table)
        left = [op for op in made.folded if optimized_ops(made.model)[op]]
        seconds = _product_seconds(row, group, table) if base else None
    except (MpqcError, ValueError) as refused:
        return Probe(row, group, REFUSED, in_plain_words(str(refused)))
    ratio = None if seconds is None or base is None else seconds / base
    if not error <= made.tolerance:
        detail = f"a relative error of {error:.1%}, more than {made.tolerance:.1%}"
        return Probe(row, group, WRONG, detail, error, ratio)
    if left:
        detail = f"{', '.join(left)} stays in the graph instead of being computed at load"
        return Probe(row, group, WRONG, detail, error, ratio)
    return Probe(row, group, RIGHT, "", error, ratio)


def _error(made: RowModel, table: Capabilities) -> float:
    """Returns the largest relative error of the samples; infinite for other shapes."""
    worst = 0.0
    with open_session(made.model, table.provider, threads=1) as session:
        for feeds, expected in zip(made.feeds, made.expected, strict=True):
            found = session.run(feeds)["y"]
            if found.shape != expected.shape:
                return float("inf")
            off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            worst = max(worst, float(np.nan_to_num(off, nan=np.inf)))
    return worst


def in_plain_words(text: str) -> str:
    """Returns a runtime's message without codes, places in its sources and conditions."""
    text = " ".join(text.split())
    for before in (" was false. ", " was true. ", "[with T1 = float] "):
        text = text.rpartition(before)[2]
    if "[ONNXRuntimeError]" in text:
        text = text.rpartition("[ONNXRuntimeError]")[2].split(" : ", 3)[-1]
    return text.strip().rstrip(".")[:160]


def _float_seconds(table: Capabilities) -> float:
    made = float_product(_SIZE, _SIZE)
    with open_session(made.model, table.provider, threads=1) as session:
        return _seconds(session, made)


def _product_seconds(row: Row, group: int, table: Capabilities) -> float | None:
    """Returns the seconds of one token; None of what is no product."""
    if row.kind != PRODUCT:
        return None
    made = row_model(row, group, table, (_SIZE, _SIZE))
    with open_session(made.model, table.provider, threads=1) as session:
        return _seconds(session, made)


def _seconds(session: RuntimeSession, made: RowModel) -> float:
    """Returns the shortest time of one run: other work on the machine only adds."""
    return min(_timed(lambda: session.run(made.feeds[0])))


def _timed(run: Callable[[], object]) -> Iterator[float]:
    end = time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        run()
        yield time.perf_counter() - start

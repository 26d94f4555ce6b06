"""Tries every row of a capability table on this machine: is it right, and is it fast?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir

from ...ir import Capabilities, Feeds, MpqcError
from ...ir.target_rows import PRODUCT, Row, rows_of
from .capabilities import installed_runtime_problem
from .row_models import float_product, row_model
from .row_parts import RowModel
from .runner import open_session, optimized_ops

RIGHT, WRONG, REFUSED, NOT_HERE = "right", "wrong", "refused", "cannot be tried here"
_SIZE = 1024  # rows and columns of what is timed: more than the call takes
_SECONDS = 0.05


class Session(Protocol):
    """A model in some runtime."""

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the outputs for one sample."""
        ...


Opener = Callable[[ir.Model], AbstractContextManager[Session]]


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
    table: Capabilities,
    *,
    timed: bool = False,
    problem: str | None = None,
    elsewhere: Opener | None = None,
) -> tuple[Probe, ...]:
    """Tries every row of ``table``, on one thread.

    Args:
        table: The table.
        timed: Whether to time products, which takes a few seconds.
        problem: Why the runtime cannot run here, if that is known.
        elsewhere: Loads a model in another runtime than the table's own.

    Returns:
        A probe for each group of each row; an error of the machine or a model that is refused
        is in it.
    """
    wanted = [(row, group) for row in rows_of(table) for group in row.groups]
    if problem is None and elsewhere is None:
        problem = installed_runtime_problem(table.target)
    if problem is not None:
        return tuple(Probe(row, group, NOT_HERE, problem) for row, group in wanted)
    own = partial(_open_in_memory, table.provider)
    trial = _Trial(table, elsewhere or own, elsewhere is None, timed)
    return tuple(trial.probe(row, group) for row, group in wanted)


def _open_in_memory(provider: str, model: ir.Model) -> AbstractContextManager[Session]:
    return open_session(_bytes(model), provider, threads=1)


def _bytes(model: ir.Model) -> bytes:
    """Returns the file of a tiny model: a hundred of them on a disk would take seconds."""
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


class _Trial:
    """The rows of a table in one runtime."""

    def __init__(self, table: Capabilities, opened: Opener, folds: bool, timed: bool) -> None:
        self._table, self._open, self._folds = table, opened, folds
        self._base = self._seconds(float_product(_SIZE, _SIZE)) if timed else None

    def probe(self, row: Row, group: int) -> Probe:
        try:
            made = row_model(row, group, self._table)
            error = self._error(made)
            left = self._left(made)
            ratio = self._ratio(row, group)
        except (MpqcError, ValueError) as refused:
            return Probe(row, group, REFUSED, in_plain_words(str(refused)))
        if not error <= made.tolerance:
            detail = f"a relative error of {error:.1%}, more than {made.tolerance:.1%}"
            return Probe(row, group, WRONG, detail, error, ratio)
        if left:
            detail = f"{', '.join(left)} stays in the graph instead of being computed at load"
            return Probe(row, group, WRONG, detail, error, ratio)
        return Probe(row, group, RIGHT, "", error, ratio)

    def _error(self, made: RowModel) -> float:
        """Returns the largest relative error of the samples; infinite for other shapes."""
        worst = 0.0
        with self._open(made.model) as session:
            for feeds, expected in zip(made.feeds, made.expected, strict=True):
                found = session.run(feeds)["y"]
                if found.shape != expected.shape:
                    return float("inf")
                off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
                worst = max(worst, float(np.nan_to_num(off, nan=np.inf)))
        return worst

    def _left(self, made: RowModel) -> list[str]:
        """Returns which op types are left that should be computed when the model is loaded."""
        if not made.folded or not self._folds:
            return []
        left = optimized_ops(_bytes(made.model))
        return [op for op in made.folded if left[op]]

    def _ratio(self, row: Row, group: int) -> float | None:
        """Returns the time of one token of a product, relative to the float32 product."""
        if self._base is None or row.kind != PRODUCT:
            return None
        return self._seconds(row_model(row, group, self._table, (_SIZE, _SIZE))) / self._base

    def _seconds(self, made: RowModel) -> float:
        """Returns the shortest time of one run: other work on the machine only adds."""
        with self._open(made.model) as session:
            return min(_timed(lambda: session.run(made.feeds[0])))


def in_plain_words(text: str) -> str:
    """Returns a runtime's message without codes, places in its sources and conditions."""
    text = " ".join(text.split())
    for before in (" was false. ", " was true. ", "[with T1 = float] "):
        text = text.rpartition(before)[2]
    if "[ONNXRuntimeError]" in text:
        text = text.rpartition("[ONNXRuntimeError]")[2].split(" : ", 3)[-1]
    return text.strip().rstrip(".")[:160]


def _timed(run: Callable[[], object]) -> Iterator[float]:
    end = time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        run()
        yield time.perf_counter() - start

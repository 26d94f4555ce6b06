"""The files that hold a model's statistics: one for each block, and an index.

A block's file is written once, when the block is done. What only the whole sweep knows, such
as at how many places the loss was taken, is in the index, and so are the small arrays that
depend on it. The index is written last: statistics without one are not complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...ir import ArrayStore, CachedFile, InputError, Unit
from ...ir.sealed_file import read_seal
from ..engine.pipeline.base import PassContext
from ..engine.statistics.moments import (
    SQUARES,
    UNSEEN,
    MomentSums,
    UnitMoments,
    unseen_share,
)
from ..engine.statistics.squares import DEVIATIONS, packed_square
from .gathering import SAID, SEEN

_GATHERED = "/gathered"


@dataclass(frozen=True)
class Statistics:
    """Where the statistics of one model and some samples are or belong.

    Attributes:
        wanted: Names of the arrays to gather.
        index: The file that is written last.
        blocks: One file for each block, in execution order.
    """

    wanted: frozenset[str]
    index: CachedFile
    blocks: tuple[CachedFile, ...]

    @classmethod
    def of(
        cls, context: PassContext, inputs: Sequence[object], wanted: frozenset[str], count: int
    ) -> Statistics:
        """Returns the files of statistics that depend on ``inputs``, by their text.

        Args:
            context: Knows the folder.
            inputs: All that they depend on.
            wanted: Names of the arrays.
            count: How many blocks there are.
        """
        blocks = tuple(context.cached_file(*inputs, "block", place) for place in range(count))
        return cls(wanted, context.cached_file(*inputs), blocks)

    @property
    def unfinished(self) -> Path:
        """The folder of what a sweep leaves at boundaries until it is complete."""
        return self.index.path.with_suffix(".unfinished")

    def facts(self, say: Any) -> dict[str, Any] | None:
        """Returns what the index says if the statistics are complete, or None.

        Args:
            say: Told when a broken file is removed.
        """
        facts = self.index.facts(say)
        if facts is None or any(one.facts(say) is None for one in self.blocks):
            return None
        return facts

    def peek(self) -> dict[str, Any] | None:
        """Returns the same for those who only look: nothing is read through or removed."""
        facts = self.index.peek()
        complete = facts is not None and all(one.path.is_file() for one in self.blocks)
        return facts if complete else None

    def mount(self, arrays: ArrayStore) -> None:
        """Makes complete statistics readable."""
        for file in self.blocks:
            arrays.mount(file.path)
        arrays.mount(self.index.path)

    def write(
        self, place: int, sums: MomentSums, positions: float, untouched: Sequence[str] = ()
    ) -> None:
        """Writes the moments of one block, and forgets them.

        Args:
            place: Which block.
            sums: Its moments.
            positions: At how many places of the loss they were taken.
            untouched: Names of ``rows`` of weights that got no gradient.

        Raises:
            InputError: The samples overflow the model.
        """
        _refuse_overflow(sums)
        counts = sums.counts()
        facts = {
            "counts": counts,
            "positions": positions,
            "untouched": list(untouched),
        }
        arrays = {_kept_as(name, counts): array for name, array in sums.arrays()}
        self.blocks[place].write(arrays, facts)

    def finish(self, units: Sequence[Unit], **facts: Any) -> dict[str, Any]:
        """Writes the index; returns what it says.

        Args:
            units: The units, to know the shapes of what no sample has shown.
            facts: What else it shall say.
        """
        gathered = _Gathered.of(self.blocks)
        arrays = dict(gathered.expectations())
        arrays |= gathered.frequencies()
        arrays |= gathered.missing(units, self.wanted, arrays)
        arrays = {name: _without_zeros(name, one, gathered) for name, one in arrays.items()}
        told = {
            "positions": gathered.positions,
            "rows": gathered.rows_seen(),
            **facts,
        }
        self.index.write(arrays, told)
        return told


@dataclass(frozen=True)
class _Gathered:
    """What the files of all blocks say together.

    Attributes:
        store: Their arrays.
        counts: Over how many positions each array is the mean; 0 for a sum.
        positions: At how many places the loss was taken.
        untouched: Names of ``rows`` of weights that got no gradient in a block.
    """

    store: ArrayStore
    counts: dict[str, int]
    positions: float
    untouched: frozenset[str]

    @classmethod
    def of(cls, files: Sequence[CachedFile]) -> _Gathered:
        store, positions = ArrayStore(), 0.0
        counts: dict[str, int] = {}
        untouched: set[str] = set()
        for file in files:
            facts = read_seal(file.path).facts
            store.mount(file.path)
            counts |= facts["counts"]
            positions += facts["positions"]
            untouched |= set(facts["untouched"])
        return cls(store, counts, positions, frozenset(untouched))

    def expectations(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields those small arrays that are still sums, divided by the places of the loss."""
        places = max(self.positions, 1.0)
        for name, count in self.counts.items():
            if name.endswith(SQUARES) and not count:
                deviations = self.store.get(name + DEVIATIONS + _GATHERED)
                yield name + DEVIATIONS, deviations / np.float32(places) ** 0.5
            elif name.endswith("/rows"):
                yield (
                    name,
                    self.store.get(name + _GATHERED) / np.float32(1 if count else places),
                )

    def frequencies(self) -> dict[str, np.ndarray]:
        """Returns how often each row of a table is looked up, what the model says included."""
        found = {}
        said = self.store.get(SAID) if SAID in self.store else None
        for name in self.counts:
            unit, _, what = name.rpartition("/")
            if what != SEEN:
                continue
            counts = self.store.get(name)
            unseen = max(UNSEEN, unseen_share(torch.from_numpy(np.array(counts))))
            if said is not None and len(said) == len(counts):
                counts = (counts + said * (counts.sum() / said.sum())) / 2
                unseen = UNSEEN
            rows = (1 - unseen) * counts + unseen * counts.mean()
            found[f"{unit}/rows"] = rows / np.float32(max(self.positions, 1.0))
        return found

    def missing(
        self, units: Sequence[Unit], wanted: frozenset[str], arrays: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns what no sample has shown: zeros, or the relative error of the weight itself.

        That a sequence of one token never reads the recurrent weights makes them no cheaper.
        """
        found: dict[str, np.ndarray] = {}
        for unit in units:
            rows, columns = unit.shape
            names = [UnitMoments(unit).name(at, "rows") for at in range(len(unit.uses))]
            for at in range(len(unit.uses)):
                for what in ("rows", "hessian", "activation", "span", "low", "high"):
                    name = UnitMoments(unit).name(at, what)
                    if name not in wanted or name in arrays or name in self.store:
                        continue
                    if what == "hessian":
                        found |= packed_square(name, torch.zeros(columns, columns))
                    else:
                        size = {"rows": rows, "span": 1}.get(what, columns)
                        found[name] = np.zeros(size, np.float32)
            if all(name in found for name in names) and self.untouched.issuperset(names):
                energy = float(np.square(unit.matrix(), dtype=np.float64).sum())
                found[names[0]] = np.full(rows, 1 / max(energy, 1e-24), np.float32)
        return found

    def rows_seen(self) -> dict[str, int]:
        """Returns how many rows every unit's Hessian is of; of several, the fewest."""
        seen: dict[str, int] = {}
        for name, count in self.counts.items():
            if name.endswith("/hessian") and count:
                unit = name.rsplit("/", 2)[0]
                seen[unit] = min(seen.get(unit, count), count)
        return seen


def _kept_as(name: str, counts: Mapping[str, int]) -> str:
    """Returns the name of an array in a block's file: of what the index restates, another.

    No name may be in two files, whose order a dump does not keep.
    """
    square = name.removesuffix(DEVIATIONS)
    summed = square != name and not counts[square]
    return name + _GATHERED if summed or name.endswith("/rows") else name


def _without_zeros(name: str, array: np.ndarray, gathered: _Gathered) -> np.ndarray:
    """Gives rows that mattered nowhere what an average row has at one place.

    A row like that of a dead ReLU may matter at the next place.
    """
    if name.endswith("/rows"):
        array = array.copy()
        array[array == 0] = array.mean() / max(gathered.positions, 1.0)
    return array


def _refuse_overflow(sums: MomentSums) -> None:
    """Refuses samples on which squares of activations or gradients are no numbers.

    Raises:
        InputError: Names a unit.
    """
    broken = sums.overflown()
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise InputError(
            f"what {broken[0]!r}{others} multiplies on these samples, or its gradient, is NaN "
            "or has squares beyond float32",
            hint="look for entries of 1e19 or more in the samples, and run the model on them",
        )

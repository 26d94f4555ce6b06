"""One unit's part of the array store, and the layout of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import ArrayStore
from .option import Option


@dataclass(frozen=True)
class RowClass:
    """Rows of a unit that are stored with the same option.

    Attributes:
        index: Which class of the unit.
        option: How the rows are stored.
        rows: Int64: the rows, numbered as consumers see them, in stored order.
        offset: Position of the first one in stored order.
    """

    index: int
    option: Option
    rows: np.ndarray
    offset: int


@dataclass(frozen=True)
class UnitArrays:
    """The arrays of one unit. Notes say which ones there are (see ``vocabulary``).

    Attributes:
        unit: Name of the unit, the prefix of its arrays.
        store: The side store.
    """

    unit: str
    store: ArrayStore

    def name(self, *parts: object) -> str:
        """Returns the full name of an array: the unit and the parts, joined by slashes."""
        return "/".join((self.unit, *map(str, parts)))

    def get(self, *parts: object) -> np.ndarray:
        """Returns an array.

        Raises:
            InternalError: There is no such array.
        """
        return self.store.get(self.name(*parts))

    def find(self, *parts: object) -> np.ndarray | None:
        """Returns an array, or None."""
        return self.get(*parts) if self.has(*parts) else None

    def has(self, *parts: object) -> bool:
        """Tells whether there is such an array."""
        return self.name(*parts) in self.store

    def put(self, array: np.ndarray, *parts: object) -> None:
        """Keeps an array in memory."""
        self.store.put(self.name(*parts), array)

    def discard(self, *parts: object) -> None:
        """Forgets all arrays whose names start so; a last part "" stands for a folder."""
        self.store.discard(self.name(*parts))

    def under(self, *parts: object) -> Iterator[str]:
        """Yields what follows in the names of the arrays in a folder."""
        start = self.name(*parts, "")
        return (
            name.removeprefix(start) for name in self.store.names() if name.startswith(start)
        )

    def order(self, rows: int) -> np.ndarray:
        """Returns the unit's rows in stored order, int64."""
        found = self.find("order")
        return np.arange(rows) if found is None else found.astype(np.int64)

    def row_classes(self, options: Sequence[str], counts: Sequence[int]) -> list[RowClass]:
        """Returns the rows by option, in stored order.

        Args:
            options: Printed options of the classes.
            counts: Rows of each class.
        """
        ends = np.cumsum(counts, dtype=np.int64)
        parts = np.split(self.order(int(ends[-1])), ends[:-1])
        return [
            RowClass(index, Option.parse(text), rows, int(end) - len(rows))
            for index, (text, rows, end) in enumerate(zip(options, parts, ends, strict=True))
        ]

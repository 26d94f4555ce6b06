"""Deciding the rows of several units together, so that one order of rows sorts all of them.

Rows of a unit that got the same option are stored side by side. When the rows of two units
have to stand in the same order, their options may not cross: sorted by the options of one, the
rows must also be sorted by those of the other. That is so exactly when every row takes its
options from a chain, in which from place to place no option ever gets smaller::

    (2, 2) -> (4, 2) -> (4, 4) -> (4, 8) -> (8, 8)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .knapsack import Choice, Item, Toll, used_in


@dataclass(frozen=True)
class Joint:
    """Units that are decided together.

    Attributes:
        items: The units; as many rows in each, options by growing size.
        path: Places x units, the options along the chain.
        item: The units as one, whose options are the places of the chain.
    """

    items: tuple[Item, ...]
    path: np.ndarray
    item: Item

    @classmethod
    def alone(cls, item: Item) -> Joint:
        """A unit that stores its own order when its rows get different options."""
        return cls((item,), _chain([item]), item)

    @classmethod
    def of(cls, items: Sequence[Item]) -> Joint:
        """Units that share one order, which costs them no bytes."""
        path = _chain(items)
        columns = list(zip(items, path.T, strict=True))
        item = Item(
            loss=np.sum([one.loss[:, at].astype(np.float64) for one, at in columns], axis=0),
            row_bytes=np.sum([one.row_bytes[at] for one, at in columns], axis=0),
            mixing_bytes=0,
            tile=items[0].tile,
            class_bytes=np.sum([one.class_bytes[at] for one, at in columns], axis=0),
            toll=_JointToll.along(items, path) if any(one.toll for one in items) else None,
        )
        return cls(tuple(items), path, item)

    def split(self, choice: Choice) -> list[Choice]:
        """Returns what each unit got when ``item`` got ``choice``."""
        if len(self.items) == 1:
            return [choice]
        return [
            _part(item, at[choice.option])
            for item, at in zip(self.items, self.path.T, strict=True)
        ]


@dataclass(frozen=True)
class _JointToll(Toll):
    """The toll of units that share an order: nobody restores it."""

    members: tuple[Toll, ...]
    path: np.ndarray

    @classmethod
    def along(cls, items: Sequence[Item], path: np.ndarray) -> _JointToll:
        members = tuple(replace(one.tolls, ordering=0.0) for one in items)
        columns = list(zip(members, path.T, strict=True))
        return cls(
            row=np.sum([one.row[at] for one, at in columns], axis=0),
            classes=np.sum([one.classes[at] for one, at in columns], axis=0),
            mixing=0.0,
            ordering=0.0,
            members=members,
            path=path,
        )

    def shared(self, used: np.ndarray) -> float:
        columns = zip(self.members, self.path[used].T, strict=True)
        return sum(one.shared(used_in(at)) for one, at in columns)


def _part(item: Item, option: np.ndarray) -> Choice:
    loss = item.loss[np.arange(len(option)), option].sum(dtype=np.float64)
    return Choice(option, replace(item, mixing_bytes=0).bytes_of(option), float(loss))


def _chain(items: Sequence[Item]) -> np.ndarray:
    """Raises one unit at a time, the one that gains most for its bytes, up to the top."""
    place = [0] * len(items)
    path = [tuple(place)]
    totals = [item.loss.sum(axis=0, dtype=np.float64) for item in items]
    tops = [len(item.row_bytes) - 1 for item in items]
    while open_ends := [u for u, top in enumerate(tops) if place[u] < top]:

        def gain(u: int) -> float:
            at, sizes, total = place[u], items[u].row_bytes, totals[u]
            more = np.maximum(sizes[at + 1 :] - sizes[at], 1)
            # The next option may gain little where the one behind it gains much.
            return float(((total[at] - total[at + 1 :]) / more).max())

        place[max(open_ends, key=lambda u: (gain(u), -u))] += 1
        path.append(tuple(place))
    return np.array(path)

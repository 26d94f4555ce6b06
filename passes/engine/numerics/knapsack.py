"""Choosing an option for every tile of rows, inside a byte budget, at the least loss.

This is the multiple-choice knapsack over tiles: ``min sum loss`` subject to ``sum bytes <=
budget``. For a price ``lambda`` on bytes every tile chooses alone, which visits exactly the
vertices of the lower convex hull; bisection finds the price that fits the budget, and the
bytes that are left go to single tiles by falling gain per byte. Tiles are cut from rows that
want the same option, so that few of them have to settle for a compromise.

A unit may also have to pay a toll, in units of loss, for what its choice costs beside bytes,
such as time: then the least sum of losses and tolls is sought.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_STRIDE = 16.0  # how far the search for a price steps before it halves
_PRECISION = 1e-7  # of the price; what is left over goes to single tiles
_COARSE = 1e-2  # ... where the result only sorts rows

Tried = Callable[[], None]  # is told that every unit has chosen at one more price


def _unheard() -> None:
    pass


@dataclass(frozen=True)
class Toll:
    """What the choice of a unit costs beside loss and bytes, in units of loss.

    Attributes:
        row: Of one row, for each option.
        classes: Of an option that any rows have, for each.
        mixing: Of rows with different options.
        ordering: Of the order of such rows, where it has to be restored.
    """

    row: np.ndarray
    classes: np.ndarray
    mixing: float
    ordering: float

    @classmethod
    def none(cls, options: int) -> Toll:
        """Returns the toll of what costs nothing."""
        return cls(np.zeros(options), np.zeros(options), 0.0, 0.0)

    def shared(self, used: np.ndarray) -> float:
        """Returns what no row pays by itself, given the places of the options in use."""
        mixed = self.mixing + self.ordering if len(used) > 1 else 0.0
        return float(self.classes[used].sum()) + mixed


@dataclass(frozen=True)
class Item:
    """One unit as the allocator sees it.

    Attributes:
        loss: Rows x options, nats per token.
        row_bytes: Stored bytes of one row under each option, ascending.
        mixing_bytes: What it costs to store that rows have different options.
        tile: Rows are decided in tiles of this many; 0 decides the unit whole.
        class_bytes: What it costs that any rows have an option, for each; nothing by default.
        toll: What its choice costs beside; nothing by default.
    """

    loss: np.ndarray
    row_bytes: np.ndarray
    mixing_bytes: int
    tile: int
    class_bytes: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    toll: Toll | None = None

    def __post_init__(self) -> None:
        classes = np.broadcast_to(self.class_bytes, self.row_bytes.shape)
        object.__setattr__(self, "class_bytes", classes)

    @property
    def tolls(self) -> Toll:
        """The toll, also where there is none."""
        return self.toll if self.toll is not None else Toll.none(len(self.row_bytes))

    def shared_bytes(self, option: np.ndarray) -> int:
        """Returns what no row takes by itself, given the places of the options in use."""
        used = used_in(option)
        mixing = self.mixing_bytes if len(used) > 1 else 0
        return int(self.class_bytes[used].sum()) + mixing

    def bytes_of(self, option: np.ndarray) -> int:
        """Returns the bytes of all rows, given the place of each one's option."""
        return int(self.row_bytes[option].sum()) + self.shared_bytes(option)


@dataclass(frozen=True)
class Choice:
    """The allocation of one unit.

    Attributes:
        option: Index of the option of every row.
        bytes: Stored bytes, with what mixing costs.
        loss: Predicted loss, nats per token.
    """

    option: np.ndarray
    bytes: int
    loss: float


def used_in(options: np.ndarray) -> np.ndarray:
    """Returns the places that occur among the options of rows, ascending."""
    return np.asarray(np.flatnonzero(np.bincount(options)))


class _Tiles:
    """The rows of one unit, sorted by what they want and cut into tiles."""

    def __init__(self, item: Item, wanted: np.ndarray, tile: int) -> None:
        """Cuts the rows.

        Args:
            item: The unit.
            wanted: The option of every row, were it decided alone. Among rows that want the
                same, those come last that gain most from more bits.
            tile: Rows in a tile; 0 for all.
        """
        rows = item.loss.shape[0]
        gain = item.loss[:, 0] - item.loss[:, -1]
        self.rows = np.lexsort((gain, wanted))
        tile = tile or rows
        self.starts = np.arange(0, rows, tile)
        # A short last tile would leave a class with an odd number of rows: join it to its
        # neighbour.
        if len(self.starts) > 1 and rows % tile:
            self.starts = self.starts[:-1]
        self.loss = np.add.reduceat(
            item.loss[self.rows].astype(np.float64), self.starts, axis=0
        )
        self.sizes = np.diff(np.append(self.starts, rows))
        self.bytes = self.sizes[:, None] * item.row_bytes[None]
        self.item, self.toll = item, item.tolls
        self.cost = self.loss + self.sizes[:, None] * self.toll.row[None]
        self.option = np.zeros(len(self.starts), dtype=np.int64)

    def choose(self, price: float) -> None:
        """Takes the best option of every tile at ``price``, or the best single one for all."""
        cost = self.cost + price * self.bytes
        whole_costs = cost.sum(axis=0) + price * self.item.class_bytes + self.toll.classes
        whole, mixed = int(whole_costs.argmin()), self._mixed(cost, price)
        mixed_cost = self._at(cost, mixed).sum() + self._shared(mixed, price)
        if mixed_cost < whole_costs[whole] and mixed.min() != mixed.max():
            self.option = mixed
        else:
            self.option = np.full(len(self.starts), whole)

    def _mixed(self, cost: np.ndarray, price: float) -> np.ndarray:
        """Returns the best option of every tile, without those that are not worth a class."""
        mixed: np.ndarray = cost.argmin(axis=1)
        if self.toll.classes.any():
            while len(used := used_in(mixed)) > 2:
                least = self._at(cost, mixed).sum() + self._shared(mixed, price)
                fewer = [_within(cost, np.delete(used, at)) for at in range(len(used))]
                costs = [self._at(cost, one).sum() + self._shared(one, price) for one in fewer]
                if min(costs) >= least:
                    break
                mixed = fewer[int(np.argmin(costs))]
        return mixed

    def _shared(self, option: np.ndarray, price: float) -> float:
        """Returns what tiles with these options pay together at ``price``."""
        return price * self.item.shared_bytes(option) + self.toll.shared(used_in(option))

    def _at(self, table: np.ndarray, option: np.ndarray) -> np.ndarray:
        return np.asarray(table[np.arange(len(option)), option])

    def total_cost(self) -> float:
        """Returns losses and tolls."""
        own = float(self._at(self.cost, self.option).sum())
        return own + self.toll.shared(used_in(self.option))

    def total_bytes(self) -> int:
        chosen = self.bytes[np.arange(len(self.option)), self.option].sum()
        return int(chosen) + self.item.shared_bytes(self.option)

    def total_loss(self) -> float:
        return float(self.loss[np.arange(len(self.option)), self.option].sum())

    def row_options(self) -> np.ndarray:
        options = np.empty(len(self.rows), dtype=np.int64)
        options[self.rows] = np.repeat(self.option, self.sizes)
        return options


def _within(cost: np.ndarray, options: np.ndarray) -> np.ndarray:
    """Returns the cheapest of ``options`` for every tile."""
    return np.asarray(options[cost[:, options].argmin(axis=1)])


def smallest_bytes(items: list[Item]) -> int:
    """Returns the fewest bytes that any choice can reach."""
    return sum(
        int((item.row_bytes * item.loss.shape[0] + item.class_bytes).min()) for item in items
    )


def _bisect(units: list[_Tiles], budget: int, precision: float, tried: Tried) -> float:
    """Leaves every unit with its choice at the lowest price that fits the budget.

    Returns the price.

    Args:
        units: The units; they are given their choice.
        budget: Bytes for all of them.
        precision: Relative precision of the price.
        tried: Told of every price.
    """

    def fits(price: float) -> bool:
        tried()
        return _fits(units, price, budget)

    if fits(0.0):
        return 0.0
    high = _typical_price(units)
    while not fits(high):
        high *= _STRIDE
    low = high / _STRIDE
    while low > 0 and fits(low):
        low, high = low / _STRIDE, low
    while high > low * (1 + precision) and high > sys.float_info.min:
        middle = (low * high) ** 0.5
        if fits(middle):
            high = middle
        else:
            low = middle
    fits(high)
    return high


def _typical_price(units: list[_Tiles]) -> float:
    """Returns the mean gain per byte between the smallest and the largest options."""
    gain = sum(float((unit.loss[:, 0] - unit.loss.min(axis=1)).sum()) for unit in units)
    more = sum(float((unit.bytes.max(axis=1) - unit.bytes[:, 0]).sum()) for unit in units)
    return max(gain / more if more else 0.0, 1e-30)


def _fits(units: list[_Tiles], price: float, budget: int) -> bool:
    """Lets every unit choose at ``price``; tells whether that fits the budget."""
    for unit in units:
        unit.choose(price)
    return sum(unit.total_bytes() for unit in units) <= budget


def _upgrades(units: list[_Tiles]) -> list[tuple[float, int, int, int]]:
    """Lists (gain per byte, unit, tile, option) for every larger option of every tile."""
    moves = []
    for u, unit in enumerate(units):
        at = np.arange(len(unit.option))
        more = unit.bytes - unit.bytes[at, unit.option][:, None]
        gain = unit.cost[at, unit.option][:, None] - unit.cost
        for tile, option in zip(*np.nonzero((more > 0) & (gain > 0)), strict=True):
            ratio = float(gain[tile, option] / more[tile, option])
            moves.append((ratio, u, int(tile), int(option)))
    return sorted(moves, key=lambda move: (-move[0], *move[1:]))


def _fill(units: list[_Tiles], budget: int) -> None:
    """Spends what is left on single tiles, best gain per byte first."""
    left = budget - sum(unit.total_bytes() for unit in units)
    for _, u, tile, option in _upgrades(units):
        unit, old = units[u], units[u].option[tile]
        if unit.cost[tile, option] >= unit.cost[tile, old]:
            continue
        if unit.bytes[tile, option] - unit.bytes[tile, old] > left:
            continue  # a class that goes may make room all the same: rare, and not worth it
        before, cost = unit.total_bytes(), unit.total_cost()
        unit.option[tile] = option
        more = unit.total_bytes() - before
        if more <= left and unit.total_cost() < cost:
            left -= more
        else:
            unit.option[tile] = old


def _wanted(items: list[Item], budget: int, tried: Tried) -> list[np.ndarray]:
    """Returns the options that rows would get if each were decided alone."""
    single = _single(items)
    _bisect(single, budget, _COARSE, tried)
    return [unit.row_options() for unit in single]


def _single(items: list[Item]) -> list[_Tiles]:
    """Returns the units with every row on its own, where rows may differ at all."""
    return [_Tiles(item, np.zeros(len(item.loss)), min(item.tile, 1)) for item in items]


def price(items: list[Item], budget: int, tried: Tried = _unheard) -> float | None:
    """Returns what a byte is worth where the budget is met, in loss.

    Args:
        items: The units.
        budget: Bytes that all of them may take together.
        tried: Told of every price that is tried.

    Returns:
        The price, or None when even the smallest options do not fit.
    """
    if smallest_bytes(items) > budget:
        return None
    return _bisect(_single(items), budget, _COARSE, tried)


def fits(items: list[Item], price: float, budget: int, tried: Tried = _unheard) -> bool:
    """Tells whether what is worth its bytes at a price fits a budget.

    Args:
        items: The units.
        price: What a byte is worth, in loss.
        budget: Bytes that all of them may take together.
        tried: Told of the price.
    """
    tried()
    return _fits(_single(items), price, budget)


def allocate(items: list[Item], budget: int, tried: Tried = _unheard) -> list[Choice] | None:
    """Chooses an option for every row.

    Args:
        items: The units.
        budget: Bytes that all of them may take together.
        tried: Told of every price that is tried.

    Returns:
        One choice per item, or None when even the smallest options do not fit.
    """
    if smallest_bytes(items) > budget:
        return None
    wanted = _wanted(items, budget, tried)
    units = [_Tiles(item, own, item.tile) for item, own in zip(items, wanted, strict=True)]
    _bisect(units, budget, _PRECISION, tried)
    _fill(units, budget)
    return [
        Choice(unit.row_options(), unit.total_bytes(), unit.total_loss()) for unit in units
    ]

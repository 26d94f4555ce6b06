"""Non-uniform levels for each input channel: weighted k-means in one dimension.

In one dimension the clusters of the best k-means are intervals of the sorted values, so
dynamic programming over their boundaries finds the optimum (Fisher 1958). The squared values
add up to the same sum whatever the intervals are, so what is left to maximize is

    G_m[j] = max_i  G_(m-1)[i] + F(i, j)^2 / V(i, j)

with ``V`` the weight and ``F`` the weighted sum of the values from boundary i to boundary j.
This is exact when every boundary between two values is a candidate, which is so for up to
``CELLS`` values. Of longer channels the candidates are half quantiles and half evenly spaced,
and Lloyd's iterations move the result on to the next local optimum. From 5 bits on, where
one level more or less hardly matters, Lloyd starts from levels whose density is the cube root
of that of the values (Panter and Dite 1951).

Throughout, ``channels`` is channels x rows: one input channel of a weight in each line.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

CELLS = 128  # candidate intervals of the dynamic program
_SOLVED_BITS = 4  # widths up to here are solved by dynamic programming
_CHANNELS_AT_ONCE = 32
_LLOYD = 12  # most iterations; one costs a search for every level, not for every value
_LARGEST = 65504.0
_LITTLE = 1e-6  # of the mean weight: keeps the means of values without weight where those are


@dataclass(frozen=True)
class Coded:
    """Channels as indices into levels of their own.

    Attributes:
        indices: uint8, channels x rows.
        levels: float32, channels x 2^bits, ascending in each channel.
    """

    indices: torch.Tensor
    levels: torch.Tensor

    def decode(self) -> torch.Tensor:
        """Returns the values that the indices stand for, channels x rows."""
        return self.levels.gather(1, self.indices.long())


def free_levels(channels: torch.Tensor, weights: torch.Tensor, bits: int) -> Coded:
    """Returns levels of least weighted squared error, rounded to float16.

    Args:
        channels: Float32, channels x rows.
        weights: What a squared error costs, not negative; channels x rows, or rows.
        bits: Width of an index, 1 to 8.
    """
    parts = []
    for at in range(0, len(channels), _CHANNELS_AT_ONCE):
        values = channels[at : at + _CHANNELS_AT_ONCE].clamp(-_LARGEST, _LARGEST)
        prices = weights[at : at + _CHANNELS_AT_ONCE] if weights.ndim == 2 else weights
        part = _Sorted.of(values, prices)
        if bits <= _SOLVED_BITS:
            levels = part.solve(part.candidates(), 1 << bits, None)
        else:
            levels = part.spread(1 << bits)
        exact = bits <= _SOLVED_BITS and values.shape[1] <= CELLS
        levels = levels if exact else part.converge(levels, None)
        parts.append(_coded(values, levels.half().float()))
    return _joined(parts)


def grid_levels(
    channels: torch.Tensor, weights: torch.Tensor, bits: int, grid_bits: int
) -> Coded:
    """Returns levels of least weighted squared error among the integers of ``grid_bits`` bits.

    Exact for intervals that end halfway between integers, up to 7 bits of grid.

    Args:
        channels: Float32, channels x rows, already divided by the scales of the grid.
        weights: What a squared error costs, not negative; channels x rows.
        bits: Width of an index, at most ``grid_bits``.
        grid_bits: Width of the grid, 8 at most.
    """
    low, high = -(1 << (grid_bits - 1)), (1 << (grid_bits - 1)) - 1
    parts = []
    for values, prices in zip(
        torch.split(channels, _CHANNELS_AT_ONCE),
        torch.split(weights, _CHANNELS_AT_ONCE),
        strict=True,
    ):
        if bits >= grid_bits:
            levels = torch.arange(low, high + 1.0).repeat(len(values), 1)
        else:
            part = _Sorted.of(values, prices)
            levels = part.solve(part.halfway(low, high), 1 << bits, (low, high))
            levels = part.converge(levels, (low, high))
        parts.append(_coded(values, levels))
    return _joined(parts)


def _joined(parts: list[Coded]) -> Coded:
    return Coded(
        torch.cat([part.indices for part in parts]), torch.cat([part.levels for part in parts])
    )


def _coded(values: torch.Tensor, levels: torch.Tensor) -> Coded:
    """Sends every value to its nearest level."""
    indices = torch.searchsorted(_middles(levels), values.contiguous(), out_int32=True)
    return Coded(indices.to(torch.uint8), levels)


def _middles(levels: torch.Tensor) -> torch.Tensor:
    return ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()


@dataclass(frozen=True)
class _Sorted:
    """The values of some channels in ascending order, and running sums over them.

    Attributes:
        values: Channels x rows, ascending.
        weight: Weight of all values before each place; channels x (rows + 1), float64.
        first: The same of weight times value.
    """

    values: torch.Tensor
    weight: torch.Tensor
    first: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, weights: torch.Tensor) -> _Sorted:
        ordered, places = values.sort(dim=1)
        wide = weights.double()
        mean = wide.mean(dim=-1, keepdim=True)
        wide = torch.where(mean > 0, wide / mean, 1.0) + _LITTLE
        prices = wide[places] if wide.ndim == 1 else wide.gather(1, places)
        return cls(ordered, _running(prices), _running(prices * ordered))

    def candidates(self) -> torch.Tensor:
        """Returns where intervals may end: places in ``values``, channels x (cells + 1)."""
        channels, rows = self.values.shape
        if rows <= CELLS:
            return torch.arange(rows + 1).repeat(channels, 1)
        quantiles = torch.linspace(0, rows, CELLS // 2 + 1).round().long().repeat(channels, 1)
        share = torch.linspace(0, 1, CELLS // 2 + 2)[1:-1]
        start, end = self.values[:, :1], self.values[:, -1:]
        even = torch.searchsorted(self.values, (start + (end - start) * share).contiguous())
        return torch.cat([quantiles, even], dim=1).sort(dim=1).values

    def halfway(self, low: int, high: int) -> torch.Tensor:
        """Returns the places halfway between the integers, or between every other two."""
        step = max((high - low + 1) // CELLS, 1)
        halves = torch.arange(low + 0.5, high, step).repeat(len(self.values), 1)
        inner = torch.searchsorted(self.values, halves)
        ends = torch.tensor([[0, self.values.shape[1]]]).repeat(len(self.values), 1)
        return torch.cat([ends[:, :1], inner, ends[:, 1:]], dim=1)

    def solve(
        self, candidates: torch.Tensor, clusters: int, grid: tuple[int, int] | None
    ) -> torch.Tensor:
        """Returns the levels of the best clusters that end at ``candidates``."""
        weight, first = (one.gather(1, candidates) for one in (self.weight, self.first))
        if grid is None:  # the gain over the mean instead of zero: fewer digits cancel
            first = first - first[:, -1:] / weight[:, -1:] * weight
        gain = _gains(weight, first, grid)
        return self._levels(candidates.gather(1, _best_edges(gain, clusters)), grid)

    def converge(self, levels: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
        """Moves levels to the means of the values nearest to them until they stay (Lloyd)."""
        ends = torch.zeros(len(levels), 1, dtype=torch.long)
        for _ in range(_LLOYD):
            inner = torch.searchsorted(self.values, _middles(levels))
            places = torch.cat([ends, inner, ends + self.values.shape[1]], dim=1)
            moved = self._levels(places, grid, levels)
            if torch.equal(moved, levels):
                break
            levels = moved
        return levels

    def spread(self, clusters: int) -> torch.Tensor:
        """Returns levels whose density is the cube root of that of the values."""
        rows = self.values.shape[1]
        count = min(2 * CELLS, max(rows - 1, 1))
        edges = self.values[:, torch.linspace(0, rows - 1, count + 1).round().long()]
        # A cell of a fixed count and width d has density 1/d, so its share is d^(2/3).
        share = edges.diff(dim=1).double().pow(2 / 3).cumsum(1)
        share = share / share[:, -1:].clamp_min(1e-300)
        wanted = ((torch.arange(clusters).double() + 0.5) / clusters).repeat(len(edges), 1)
        cell = torch.searchsorted(share, wanted).clamp_max(count - 1)
        return ((edges[:, 1:] + edges[:, :-1]) / 2).gather(1, cell)

    def _levels(
        self,
        places: torch.Tensor,
        grid: tuple[int, int] | None,
        instead: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the means between ``places``; empty clusters get ``instead``, or others'."""
        weight = self.weight.gather(1, places).diff(dim=1)
        means = (self.first.gather(1, places).diff(dim=1) / weight).float()
        present = places.diff(dim=1) > 0
        if grid is not None:
            means = means.round().clamp(*grid)
        if instead is None:
            return _filled(means, present)
        return torch.where(present, means, instead).sort(dim=1).values


def _running(terms: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(terms.cumsum(1), (1, 0))


def _filled(means: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Gives empty clusters the level of the one before, the first ones that of the first."""
    place = torch.where(present, torch.arange(means.shape[1]), -1).cummax(dim=1).values
    first = present.int().argmax(dim=1, keepdim=True)
    return means.gather(1, torch.where(place < 0, first, place))


def _gains(
    weight: torch.Tensor, first: torch.Tensor, grid: tuple[int, int] | None
) -> torch.Tensor:
    """Returns what an interval with one level gains over the level 0: channels x from x to.

    With the mean as level that is ``F^2 / V``; with an integer L next to it ``2 L F - L^2 V``.
    """
    # Only the differences of running sums are small enough for single precision.
    masses = (weight[:, None, :] - weight[:, :, None]).float().clamp_min_(1e-38)
    sums = (first[:, None, :] - first[:, :, None]).float()
    if grid is None:
        gain = sums.square_().div_(masses)
    else:
        level = (sums / masses).round_().clamp_(*grid)
        gain = (2 * sums - level * masses).mul_(level)
    backwards = torch.ones(gain.shape[1:], dtype=torch.bool).tril_()
    gain.masked_fill_(backwards, -torch.inf)
    gain.diagonal(dim1=1, dim2=2).zero_()  # an empty interval costs and gains nothing
    return gain


def _best_edges(gain: torch.Tensor, clusters: int) -> torch.Tensor:
    """Returns the edges of the best chain of ``clusters`` intervals over all cells.

    Args:
        gain: Channels x from x to, minus infinity where to < from.
        clusters: Intervals in the chain; some may be empty.

    Returns:
        Int64, channels x (clusters + 1), ascending from 0 to the last boundary.
    """
    best = [gain[:, 0]]
    for _ in range(clusters - 2):
        best.append((best[-1][:, :, None] + gain).amax(dim=1))
    channel = torch.arange(len(gain))
    edges = [torch.full((len(gain),), gain.shape[-1] - 1)]
    for reached in reversed(best[: clusters - 1]):
        edges.append((reached + gain[channel, :, edges[-1]]).argmax(dim=1))
    edges.append(torch.zeros_like(edges[0]))
    return torch.stack(edges[::-1], dim=1)

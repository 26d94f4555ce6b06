"""Sums the Hessians of one attention's projections over samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ....ir.analysis.attention.binding import NoMatchError, Projection
from ..execution.samples import Values
from ..numerics.row_hessians import Key, RowHessians
from .attention_core import Core, Wiring, wire
from .head_hessian_terms import squared_gradients, value_responses

# Of all Hessians of one unit. Beyond it, neighbouring heads share theirs.
MOST_BYTES = 128 << 20


@dataclass
class _Share:
    """The rows of a unit that share a Hessian.

    Attributes:
        role: 0 for queries, 1 for keys, 2 for values.
        heads: Which sets of channels of the wiring these are.
        rows: The channels, which are the unit's rows.
    """

    role: int
    heads: list[int]
    rows: torch.Tensor


@dataclass
class HeadHessians:
    """Gathers the Hessians to round queries, keys and values of one attention against.

    Attributes:
        core: The attention.
        probes: How many random signs to follow for queries and keys; 0 for all directions.
        generator: Source of the signs.
    """

    core: Core
    probes: int
    generator: torch.Generator
    _wiring: Wiring | None = None
    _shares: dict[Key, list[_Share]] = field(default_factory=dict)
    _sums: dict[Key, torch.Tensor] = field(default_factory=dict)
    _tokens: dict[Key, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        matrix = self.core.attention.output.unit.matrix()
        self._mixer = torch.from_numpy(matrix)

    def add(self, values: Values) -> None:
        """Adds one sample.

        Raises:
            NoMatchError: The first sample shows that the heads are somewhere else.
        """
        if self._wiring is None:
            self._wiring = wire(self.core, values)
            self._mixer = self._mixer.to(self._wiring.values.device)
            self._lay_out(self._wiring)
        squares = squared_gradients(
            self.core, values, self._mixer, self.probes, self.generator
        )
        for key, shares in self._shares.items():
            part = self._projection(key)
            inputs = values.tokens(part.use.activation)
            for at, share in enumerate(shares):
                if share.role < 2:
                    square = squares[self.core.place(share.role)]
                    weights = values.real_rows(square[:, share.rows].mean(1))
                    self._sums[key][at] += (inputs * weights[:, None]).T @ inputs
            self._tokens[key] += len(inputs)
        self._add_values(values)

    def _add_values(self, values: Values) -> None:
        """Adds ``sum_hh' <W_O,h, W_O,h'> (A_h X)^T (A_h' X)`` over heads that share."""
        assert self._wiring is not None
        attention, group = self.core.attention, self._wiring.group
        key = _key(attention.value)
        inputs = values[str(attention.value.use.activation.name)]
        inputs = inputs.reshape(-1, inputs.shape[-1]).float()
        seen = value_responses(self.core, self._wiring, values, inputs)
        split = self._mixer.reshape(len(self._mixer), attention.heads, -1)
        for at, share in enumerate(self._shares[key]):
            for head in share.heads if share.role == 2 else ():
                served = (group == head).nonzero()[:, 0]
                likeness = torch.einsum("mhi,mgi->hg", split[:, served], split[:, served])
                sizes, turn = torch.linalg.eigh(likeness / len(share.rows))
                root = turn * sizes.clamp_min(0).sqrt()
                together = torch.einsum("hi,htk->itk", root, seen[served]).flatten(0, 1)
                self._sums[key][at] += together.T @ together

    def result(self) -> dict[Key, RowHessians]:
        """Returns the means over all added tokens."""
        found = {}
        for key, shares in self._shares.items():
            rows, sums = self._projection(key).unit.shape[0], self._sums[key]
            owners = torch.zeros(rows, dtype=torch.int64, device=sums.device)
            for at, share in enumerate(shares):
                owners[share.rows] = at
            mean = sums / max(self._tokens[key], 1)
            found[key] = RowHessians(mean, owners)
        return found

    def _projection(self, key: Key) -> Projection:
        return next(one for one in self.core.attention.projections if _key(one) == key)

    def _lay_out(self, wiring: Wiring) -> None:
        """Decides which rows share a Hessian, and makes room."""
        attention = self.core.attention
        channels = (wiring.queries, wiring.keys, tuple(wiring.values))
        for role, sets in enumerate(channels):
            part = attention.projections[role]
            for heads in _split(len(sets), self._most(part)):
                rows = torch.cat([sets[head] for head in heads])
                share = _Share(role, heads, rows)
                self._shares.setdefault(_key(part), []).append(share)
        for key, shares in self._shares.items():
            count, columns = self._projection(key).unit.shape
            covered = torch.cat([share.rows for share in shares])
            if sorted(covered.cpu().tolist()) != list(range(count)):
                raise NoMatchError(f"not every row of {key[0]!r} belongs to one head")
            self._sums[key] = self._mixer.new_zeros(len(shares), columns, columns)
            self._tokens[key] = 0

    def _most(self, part: Projection) -> int:
        """Returns how many Hessians there is room for in each role of a unit."""
        roles = sum(one == part for one in self.core.attention.projections[:3])
        return max(1, MOST_BYTES // (part.unit.shape[1] ** 2 * 4 * roles))


def _split(heads: int, most: int) -> list[list[int]]:
    """Deals neighbouring heads out to at most ``most`` shares of about the same size."""
    size = -(-heads // min(most, heads))
    return [list(range(at, min(at + size, heads))) for at in range(0, heads, size)]


def _key(part: Projection) -> Key:
    return part.unit.name, part.at

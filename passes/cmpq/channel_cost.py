"""The storage cost of a weight whose input channels have their own widths and levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...ir import Capabilities, Option, Unit
from ...ir.analysis.offered import obstacle
from ..engine.emission.cost import order_bytes
from ..engine.numerics.dense_codes import dense_layout

LEVELS = {"free": 0, "grid4": 64, "grid8": 0, "even": 64}  # with the usual group of each
INDEX_GROUP = 16  # indices of a channel are stored in runs of this many
_HALF = 2  # bytes of a float16
_FLOAT = 4  # bytes of a float32
_INDEX = 4  # bytes of a place, at most
_WIDEST_GROUP = 128  # to which a kernel may want the columns of a grid padded
_UNIT_BYTES = 32  # shapes of one unit, at most
_SLICE_BYTES = 24  # bounds of a class whose channels are neighbours
_LOOKUP_BYTES = 256  # ... of one lookup of codes
_SHARED_BYTES = 160  # constants that all units share, at most
_WIDTH_BYTES = 8  # ... for each width
_ROWS_BYTES = 48  # ... for each number of rows


@dataclass(frozen=True)
class ChannelForm:
    """How the channels of one unit are stored.

    Attributes:
        levels: ``free``, ``grid4``, ``grid8`` or ``even``.
        group: Columns that share a scale; 0 for one scale per row, or none at all.
        widths: Widths of an index on offer, ascending.
        whole: Whether all channels have to have the same width.
    """

    levels: str
    group: int
    widths: tuple[int, ...]
    whole: bool = False

    @property
    def grid_bits(self) -> int:
        """Width of the grid; 0 where there is none."""
        return {"grid4": 4, "grid8": 8}.get(self.levels, 0)

    def channel_bytes(self, rows: int, bits: int) -> int:
        """Returns the bytes of the indices and the levels of one channel, without scales."""
        if self.levels == "free":
            return index_bytes(rows, bits) + _HALF * (1 << bits)
        if self.levels == "even":
            raise ValueError("channels of even levels share their scales")
        return index_bytes(rows, bits) + (0 if bits == self.grid_bits else 1 << bits)

    def unit_bytes(
        self,
        unit: Unit,
        bits: Sequence[int],
        counts: Sequence[int],
        outliers: tuple[int, int],
    ) -> int:
        """Returns the bytes of a unit, at most.

        Args:
            unit: The unit.
            bits: Widths of its channels.
            counts: Channels of each width.
            outliers: Channels and single weights that stay in 16 bits.
        """
        rows, columns = unit.shape
        classes = sum(count > 0 for count in counts)
        total = _UNIT_BYTES + outliers[0] * rows * _HALF
        total += outliers[1] * entry_bytes(rows, columns)
        if self.levels != "free":
            total += sum(use.kind == "lookup" for use in unit.uses) * _LOOKUP_BYTES
            total += (classes + 1) * _SLICE_BYTES
        if outliers[0] or classes > 1:
            total += order_bytes(columns + (-columns % _WIDEST_GROUP if self.grid_bits else 0))
            total += outliers[0] * _INDEX  # where a product finds them
        for width, count in zip(bits, counts, strict=True):
            if self.levels == "even":
                total += rows * Option(width, self.group).row_bytes(count)
            else:
                total += count * self.channel_bytes(rows, width)
        if self.grid_bits:
            total += rows * _HALF * (-(-columns // self.group) if self.group else 1)
        return total

    def resident_bytes(
        self,
        unit: Unit,
        bits: Sequence[int],
        counts: Sequence[int],
        outliers: tuple[int, int],
    ) -> int:
        """Returns the bytes of a unit once the runtime has loaded it (estimated)."""
        rows, columns = unit.shape
        if self.levels == "free":
            return int(unit.tensor.nbytes)
        total = rows * outliers[0] * _FLOAT + outliers[1] * entry_bytes(rows, columns)
        if self.grid_bits:
            groups = -(-columns // (self.group or _WIDEST_GROUP))
            return total + rows * (columns * self.grid_bits // 8 + groups * _FLOAT)
        for width, count in zip(bits, counts, strict=True):
            option = Option(width, self.group)
            groups = option.groups(count)
            total += rows * groups * (self.group * option.kernel_bits // 8 + _FLOAT)
        return total


def index_bytes(rows: int, bits: int) -> int:
    """Returns the stored bytes of a channel's indices."""
    return rows if bits == 8 else -(-rows // INDEX_GROUP) * INDEX_GROUP * bits // 8


def entry_bytes(rows: int, columns: int) -> int:
    """Returns the bytes of one weight that is stored with its row and its column."""
    return _HALF + order_bytes(rows) // rows + order_bytes(columns) // columns


def shared_bytes(widths: Iterable[int], rows: Iterable[int]) -> int:
    """Returns the bytes of the constants with which all units expand their indices, at most.

    Args:
        widths: Widths of indices that occur.
        rows: Numbers of rows that occur.
    """
    layouts = [dense_layout(bits, 8) for bits in set(widths) if bits < 8]
    tables = sum(one.shifts.size + one.weights.size + _WIDTH_BYTES for one in layouts)
    return tables + _SHARED_BYTES + _ROWS_BYTES * len(set(rows))


def form_of(
    unit: Unit, levels: str, group: int, table: Capabilities, *, expand: bool = False
) -> ChannelForm | None:
    """Returns how ``unit`` is stored if ``levels`` are asked for; None if the target cannot.

    What takes floats has no kernel for codes of columns, so it gets free levels, which every
    runtime expands; what is looked up has no kernel for columns of several widths, so with
    even levels it gets one width.
    """
    if levels == "free" or any(use.takes_floats for use in unit.uses):
        return ChannelForm("free", 0, tuple(range(1, 9)))
    if obstacle(unit):
        return None
    if levels in ("grid4", "grid8"):
        return _grid_form(unit, levels, group, table)
    options = [one for one in _options(unit, table, expand) if one.group == group]
    looked_up = any(use.kind == "lookup" for use in unit.uses)
    widths = tuple(sorted({one.bits for one in options}))
    return ChannelForm("even", group, widths, whole=looked_up) if widths else None


def _grid_form(unit: Unit, levels: str, group: int, table: Capabilities) -> ChannelForm | None:
    form = ChannelForm(levels, group, ())
    fitting = [one for one in _options(unit, table) if one.bits == form.grid_bits]
    if not any(one.group == (group or one.group) for one in fitting):
        return None
    return ChannelForm(levels, group, tuple(range(1, form.grid_bits + 1)))


def _options(unit: Unit, table: Capabilities, expand: bool = False) -> set[Option]:
    rows, columns = unit.shape
    found = set(table.product_options(rows, columns, expand=expand))
    if any(use.kind == "lookup" for use in unit.uses):
        found &= set(table.lookup_options(columns, expand=expand))
    return found

"""How many bytes a model's weights take, told from the graph alone, whoever wrote it.

A weight is a float unit as ``find_units`` sees it, or codes that a product, a convolution or a
lookup reads: those of MatMulNBits, of integer operators, or before a DequantizeLinear. Its
bytes are all constants that it is made of: scales, zero points and row orders count, and a
weight that serves several nodes counts once. Biases are not weights. Only constants decide
what counts; notes, which anybody can write, may name it.

Every constant is accounted for: it belongs to a weight, or it is a *loose* float (a bias, a
norm, a weight that no kernel reads directly), or it is neither (a shape, an index). The figure
for the whole file counts weights and loose floats.

*Stored* bytes are those in the file. *Resident* bytes are an estimate for after loading: what
depends on constants only has been computed (half-precision scales before a Cast are float32 by
then), and a constant that one kernel packs for itself and another node reads is there twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from ..annotation import note_of
from ..operands import all_nodes
from ..unit_search import find_units
from ..units import FLOAT_TYPES, SMALLEST_UNIT, Unit
from ..vocabulary import LeftInFloat, StoredPart
from .loose_floats import LooseFloat, loose_floats
from .static_values import StaticValues
from .storage_slots import Part, Slot, codes_of, distant_scales, part_of, slots_of

_PACKS_ITS_WEIGHT = {"MatMul", "Gemm", "MatMulNBits"}
_LOOKUPS = {"Gather", "GatherBlockQuantized"}
_NOT_FOLDED = {"DequantizeLinear"}  # runtimes keep the codes and expand them in each run


@dataclass(frozen=True)
class StoredWeight:
    """The storage of one weight.

    Attributes:
        name: Name of the unit, or of its largest constant.
        rows: Output channels or table rows.
        weights: Number of weights, without padding.
        bytes: Bytes in the file.
        resident: Estimated bytes after loading.
        widths: Rows by width in bits, ascending; 32 or 16 for float. Of a weight whose columns
            differ in width, as many rows as the columns of a width would fill.
        kinds: How it is used, such as ``product`` or ``lookup``.
        why_float: Why it is not quantized, if it is not and the reason is known.
    """

    name: str
    rows: int
    weights: int
    bytes: int
    resident: int
    widths: tuple[tuple[float, int], ...]
    kinds: tuple[str, ...]
    why_float: str

    @property
    def bits(self) -> float:
        """Stored bits per weight."""
        return self.bytes * 8 / max(self.weights, 1)

    @property
    def columns(self) -> int:
        """Input channels."""
        return self.weights // max(self.rows, 1)


@dataclass(frozen=True)
class Storage:
    """The storage of a model: its weights, and everything else.

    Attributes:
        units: The weights in execution order.
        rest: Bytes of constants that belong to no weight, loose floats among them.
        loose: Float constants that belong to no weight, largest first.
    """

    units: tuple[StoredWeight, ...]
    rest: int
    loose: tuple[LooseFloat, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(unit.weights for unit in self.units)

    @property
    def bytes(self) -> int:
        """Bytes of all weights in the file."""
        return sum(unit.bytes for unit in self.units)

    @property
    def resident(self) -> int:
        """Estimated bytes of all weights after loading."""
        return sum(unit.resident for unit in self.units)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; 0 for a model without weights."""
        return self.bytes * 8 / self.weights if self.weights else 0.0

    @property
    def loose_bytes(self) -> int:
        """Bytes of loose floats in the file."""
        return sum(one.bytes for one in self.loose)

    @property
    def whole_file_bits(self) -> float:
        """Stored bits per entry over all weights and all loose floats; 0 without any."""
        entries = self.weights + sum(one.entries for one in self.loose)
        return (self.bytes + self.loose_bytes) * 8 / entries if entries else 0.0

    @property
    def resident_bits_per_weight(self) -> float:
        """Resident bits per weight; 0 for a model without weights."""
        return self.resident * 8 / self.weights if self.weights else 0.0


def _expanded(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in _NOT_FOLDED


def stored(model: ir.Model) -> Storage:
    """Returns what every weight of ``model`` takes."""
    return _Accounts(model).storage()


@dataclass
class _Account:
    """The parts of one weight found so far, by their constants."""

    parts: dict[frozenset[ir.Value], Part] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    why_float: str = ""


class _Accounts:
    """Assigns every constant to the weight that it belongs to.

    Quantized weights come first, because they say that a table of halves holds scales; among
    them those that depend on constants only are last, because most are steps on the way to
    others, taken when the runtime loads the model. Then come the float ones, as ``find_units``
    sees them; then row orders; then what only notes tell.
    """

    def __init__(self, model: ir.Model) -> None:
        self._nodes = list(all_nodes(model.graph))
        self._static = StaticValues(model)
        self._owner: dict[ir.Value, str] = {}
        self._accounts: dict[str, _Account] = defaultdict(_Account)
        self._enter_all_codes()
        for unit in find_units(model, noted=False):
            self._enter_float(unit)
        for node in self._nodes:
            self._enter_row_order(node)
        for node in self._nodes:
            self._enter_noted(node)

    def _enter_all_codes(self) -> None:
        folded = [node for node in self._nodes if self._is_folded(node)]
        running = dict.fromkeys(self._nodes).keys() - folded
        for kernels in (True, False):
            for node in (one for one in self._nodes if one in running):
                for slot in slots_of(node):
                    if slot.quantized == kernels:
                        self._enter_codes(node, slot)
        for node in reversed(folded):
            for slot in slots_of(node):
                self._enter_folded_codes(node, slot)

    def _is_folded(self, node: ir.Node) -> bool:
        """Tells whether the runtime computes all of ``node`` when it loads the model."""
        return all(made in self._static for made in node.outputs)

    def _enter_folded_codes(self, node: ir.Node, slot: Slot) -> None:
        """Enters codes that are looked up by constants, unless they are a step on the way."""
        codes = codes_of(node, slot, self._static)
        if not any(one in self._owner for one in codes):
            self._enter_codes(node, slot)

    def _enter_codes(self, node: ir.Node, slot: Slot) -> None:
        value = node.inputs[slot.weight] if slot.weight < len(node.inputs) else None
        codes = codes_of(node, slot, self._static)
        if value is None or not codes or self._is_satellite(codes):
            return
        readers = (node, *codes[0].consumers())  # who reads codes that it expands says no more
        note = next((n for one in readers if (n := note_of(one, StoredPart))), None)
        known = self._owner.get(codes[0], str(codes[0].name))
        name = note.unit if note else known
        account = self._accounts[name]
        account.kinds.add(slot.kind)
        account.parts.setdefault(frozenset(codes), part_of(node, slot, self._static, codes))
        for source in [value, *slot.satellites_of(node), *distant_scales(node)]:
            for one in self._static.sources(source):
                self._owner.setdefault(one, name)

    def _enter_float(self, unit: Unit) -> None:
        """Enters a float weight, unless it turned out to be a part of a quantized one."""
        name = self._noted_whole(unit) or unit.name
        if self._owner.setdefault(unit.weight, name) != unit.name:
            return
        account = self._accounts[unit.name]
        account.kinds.update(use.kind for use in unit.uses)
        bits = unit.tensor.dtype.bitwidth
        account.parts[frozenset({unit.weight})] = Part(*unit.shape, bits)
        note = note_of(unit.notes, LeftInFloat)
        named = note.why if note is not None and note.unit == unit.name else ""
        account.why_float = named or unit.reason

    def _noted_whole(self, unit: Unit) -> str:
        """Returns the quantized weight of which a note makes a float table a part, if it may.

        Tables of scales, and columns that stay in float, have its rows and fewer columns.
        """
        note = note_of(unit.anchor, StoredPart)
        if note is None or note.unit not in self._accounts:
            return ""
        parts, (rows, columns) = self._accounts[note.unit].parts.values(), unit.shape
        whole = sum(p.columns for p in parts if p.of_columns) or max(p.columns for p in parts)
        is_part = rows <= sum(part.rows for part in parts) and columns < whole
        return note.unit if is_part else ""

    def _is_satellite(self, codes: list[ir.Value]) -> bool:
        """Whether the constants belong to a weight already, but not as its codes."""
        name = self._owner.get(codes[0])
        if name is None:
            return False
        return not any(codes[0] in part for part in self._accounts[name].parts)

    def _enter_row_order(self, node: ir.Node) -> None:
        """Charges the indices that put the rows of a split product in order."""
        if node.op_type != "Gather" or node.domain or node.inputs[1] not in self._static:
            return
        name = self._product_behind(node.inputs[0])
        if name:
            for one in self._static.sources(node.inputs[1]):
                self._owner.setdefault(one, name)

    def _product_behind(self, value: ir.Value | None) -> str:
        node = value.producer() if value is not None else None
        if node is not None and node.op_type == "Concat":
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
        if node is None or node.op_type != "MatMulNBits":
            return ""
        codes = self._static.sources(node.inputs[1])
        return self._owner.get(codes[0], "") if codes else ""

    def _enter_noted(self, node: ir.Node) -> None:
        """Charges what else the nodes of a lowered unit read, such as shapes and offsets."""
        note = note_of(node, StoredPart)
        if note is None or note.unit not in self._accounts:
            return
        if note.role == "channels" and node.op_type == "MatMul" and len(node.inputs) > 1:
            self._enter_columns(node, note.unit)
        for value in node.inputs:
            if value not in self._static.constants or self._may_be_weight(value):
                continue
            if not self._is_place(node, value, note.unit):
                self._owner.setdefault(value, note.unit)

    def _is_place(self, node: ir.Node, value: ir.Value, name: str) -> bool:
        """Tells whether ``value`` says where a table is read, which the model says itself.

        What says where the rows of an array are is made with its codes.
        """
        table = node.inputs[0] if node.op_type in _LOOKUPS else None
        is_table = table is not None and table in self._static
        return is_table and value is node.inputs[1] and "lookup" in self._accounts[name].kinds

    def _may_be_weight(self, value: ir.Value) -> bool:
        """Tells whether a constant is too much for a note to take it away."""
        tensor = self._static.constants[value]
        is_matrix = len(tensor.shape) >= 2 and tensor.size >= SMALLEST_UNIT
        return is_matrix and tensor.dtype in FLOAT_TYPES

    def _enter_columns(self, node: ir.Node, name: str) -> None:
        """Enters columns in float that belong to a weight whose others are codes."""
        for value in self._static.sources(node.inputs[1]):
            dims, dtype = self._static.dims(value), self._static.constants[value].dtype
            if dims is None or len(dims) != 2 or self._is_other(value, name):
                continue  # a note that somebody else wrote
            if value not in self._owner and self._may_be_weight(value):
                continue  # no weight without the note: it makes none
            if dtype in FLOAT_TYPES:
                self._owner[value] = name
                part = Part(dims[1], dims[0], dtype.bitwidth, of_columns=True)
                self._accounts[name].parts[frozenset({value})] = part

    def _is_other(self, value: ir.Value, name: str) -> bool:
        return self._owner.get(value, name) != name

    # The sums

    def storage(self) -> Storage:
        """Returns the sums."""
        constants = self._static.constants
        sizes: Counter[str] = Counter()
        for one, name in self._owner.items():
            sizes[name] += self._static.size(one)
        resident = self._resident()
        units = tuple(
            self._stored_weight(name, self._accounts[name], sizes[name], resident[name])
            for name in dict.fromkeys([*self._in_order(), *self._accounts])
        )
        rest = sum(self._static.size(one) for one in constants if one not in self._owner)
        return Storage(units, rest, loose_floats(self._nodes, self._static, self._owner))

    def _in_order(self) -> Iterator[str]:
        """Yields the names of the weights as nodes read them, with repetitions."""
        for node in self._nodes:
            if any(value in self._static for value in node.outputs):
                continue
            for value in node.inputs:
                sources = self._static.sources(value)
                yield from (self._owner[one] for one in sources if one in self._owner)

    def _stored_weight(
        self, name: str, account: _Account, size: int, resident: int
    ) -> StoredWeight:
        parts = account.parts.values()
        weights = sum(part.rows * part.columns for part in parts)
        split = any(part.of_columns for part in parts)
        columns = sum(part.columns for part in parts)
        widths: dict[float, float] = defaultdict(float)
        for part in parts:
            widths[part.bits] += part.rows * part.columns / columns if split else part.rows
        return StoredWeight(
            name=name,
            rows=max(part.rows for part in parts)
            if split
            else sum(part.rows for part in parts),
            weights=weights,
            bytes=size,
            resident=resident,
            widths=tuple(sorted((bits, round(rows)) for bits, rows in widths.items())),
            kinds=tuple(sorted(account.kinds)),
            why_float=account.why_float,
        )

    def _resident(self) -> Counter[str]:
        """Sums, by weight, the static values that nodes read at run time."""
        packed: dict[ir.Value, None] = {}
        plain: dict[ir.Value, None] = {}
        for node in self._nodes:
            folds = node.op_type not in _NOT_FOLDED
            if folds and all(value in self._static for value in node.outputs):
                continue
            for at, value in enumerate(node.inputs):
                if value is not None and value in self._static and not _expanded(value):
                    packs = at == 1 and node.op_type in _PACKS_ITS_WEIGHT
                    (packed if packs else plain)[value] = None
        sums: Counter[str] = Counter()
        for value in [*packed, *plain]:
            owners = [self._owner[s] for s in self._static.sources(value) if s in self._owner]
            if owners:
                sums[owners[0]] += self._static.folded_size(value)
        return sums

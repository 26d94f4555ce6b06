"""What became of every unit, collected while the notes about it are still in the graph."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..ir import (
    BitAllocation,
    ChannelAllocation,
    ChannelSpec,
    LeftInFloat,
    Option,
    OutlierColumns,
    OutlierEntries,
    Score,
    Sensitivity,
    Unit,
    all_nodes,
    all_notes_of,
    find_units,
    note_of,
)
from ..passes.cmpq.channel_cost import ChannelForm
from ..passes.engine.pipeline.base import Pass, PassContext
from ..passes.engine.pipeline.instruments import Instrument

UNITS = "units"
_DECIDING = {BitAllocation, ChannelAllocation, ChannelSpec}


class CollectUnits(Instrument):
    """Puts a row for each unit into the report after every pass that decides about units.

    The report travels in dumps, so that a run that goes on from one has the rows as well.
    """

    def after(
        self, index: int, pass_: Pass, model: ir.Model, context: PassContext, changed: bool
    ) -> bool:
        if not _DECIDING.isdisjoint(pass_.writes):
            context.report[UNITS] = unit_rows(model)
        return True


def unit_rows(model: ir.Model) -> list[dict[str, Any]]:
    """Returns a row for each unit in execution order, then one for each that is no matrix."""
    allocations = {n.unit: n for n in _notes(model, BitAllocation)}
    losses = {n.unit: n for n in _notes(model, Sensitivity)}
    scores = {n.unit: _score(n) for n in _notes(model, Score)}
    reasons = {n.unit: n.why for n in _notes(model, LeftInFloat)}
    rows, seen = [], set()
    for unit in find_units(model):
        seen.add(unit.name)
        row = _row(
            unit, allocations.get(unit.name), losses.get(unit.name), reasons.get(unit.name)
        )
        rows.append(row | scores.get(unit.name, {}))
    rows += [
        {"name": name, "reason": why} for name, why in reasons.items() if name not in seen
    ]
    return rows


def _score(note: Score) -> dict[str, Any]:
    """Returns the score as it stands in a row; that of a block names the block."""
    block = {"block": note.block} if note.block >= 0 else {}
    return {"score": {"metric": note.metric, "value": note.value, **block}}


def _notes(model: ir.Model, cls: type[Any]) -> list[Any]:
    return [note for node in all_nodes(model.graph) for note in all_notes_of(node, cls)]


def _row(
    unit: Unit,
    allocation: BitAllocation | None,
    sensitivity: Sensitivity | None,
    why: str | None,
) -> dict[str, Any]:
    rows, columns = unit.shape
    facts: dict[str, Any] = {
        "name": unit.name,
        "rows": rows,
        "columns": columns,
        "uses": [f"{use.node.op_type} {use.node.name}".strip() for use in unit.uses],
    }
    channels = note_of(unit.notes, ChannelAllocation)
    if channels is not None and channels.unit == unit.name:
        return facts | _channel_facts(unit, channels)
    if allocation is None:
        tensor = unit.weight.const_value
        size = tensor.nbytes if tensor is not None else 0
        reason = why or unit.reason or "nobody chose an option for it"
        return {**facts, "bits": _bits(size, unit), "bytes": size, "reason": reason}
    size = sum(
        Option.parse(text).row_bytes(columns) * count
        for text, count in zip(allocation.options, allocation.counts, strict=True)
    )
    facts |= {
        "options": dict(zip(allocation.options, allocation.counts, strict=True)),
        "bits": _bits(size, unit),
        "bytes": size,
        "loss": allocation.loss,
    }
    if sensitivity is not None:
        facts["sensitivity"] = dict(zip(sensitivity.options, sensitivity.total, strict=True))
    return facts


def _channel_facts(unit: Unit, note: ChannelAllocation) -> dict[str, Any]:
    """Returns what became of a unit whose input channels were given widths."""
    columns = note_of(unit.notes, OutlierColumns)
    entries = note_of(unit.notes, OutlierEntries)
    outliers = (columns.columns if columns else 0, entries.entries if entries else 0)
    form = ChannelForm(note.levels, note.group, note.bits)
    size = form.unit_bytes(unit, note.bits, note.counts, outliers)
    facts: dict[str, Any] = {
        "levels": note.levels,
        "channels": {str(b): n for b, n in zip(note.bits, note.counts, strict=True)},
        "outliers": {"columns": outliers[0], "entries": outliers[1]},
        "bits": _bits(size, unit),
        "bytes": size,
    }
    spec = note_of(unit.notes, ChannelSpec)
    return facts | ({"loss": spec.loss} if spec is not None else {})


def _bits(size: int, unit: Unit) -> float:
    return size * 8 / max(unit.size, 1)

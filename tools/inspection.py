"""mpqc inspect: what the weights of any ONNX file take, recomputed from its graph alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..frontend.model_source import locate
from ..ir import InputError, inline_functions, read_model
from ..ir.analysis.attention import Attention, Found, find_attention
from ..ir.analysis.storage import Storage, StoredWeight, stored

_NEGLIGIBLE = 0.01  # share of a file that may lie outside all units without a warning


@dataclass(frozen=True)
class Inspection:
    """A model file seen from outside.

    Attributes:
        model: The file.
        storage: What its weights take.
        file_bytes: Bytes of the file and its external data.
        attention: Which units its attentions use, and which softmax is none, and why.
    """

    model: Path
    storage: Storage
    file_bytes: int
    attention: Found

    def facts(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        return {
            "model": str(self.model),
            "bits_per_weight": self.storage.bits_per_weight,
            "whole_file_bits": self.storage.whole_file_bits,
            "resident_bits_per_weight": self.storage.resident_bits_per_weight,
            "weights": self.storage.weights,
            "weight_bytes": self.storage.bytes,
            "other_bytes": self.storage.rest,
            "file_bytes": self.file_bytes,
            "units": [unit_facts(unit) for unit in self.storage.units],
            **left_in_float(self.storage, self.file_bytes),
            "attention": [attention_facts(one) for one in self.attention.bound],
            "no_attention": [
                {"node": str(one.node.name), "operator": one.node.op_type, "reason": one.why}
                for one in self.attention.unmatched
            ],
        }


def inspect_file(named: Path | str) -> Inspection:
    """Looks at a model file, or at the one in a folder.

    Raises:
        InputError: It is no readable ONNX model.
    """
    source = locate(Path(named))
    if source.onnx is None:
        raise InputError(f"{named} holds no ONNX model", hint=f"run: mpqc export {named}")
    model = _inlined(source.onnx)
    found = find_attention(model)
    return Inspection(source.onnx, stored(model), model_bytes(source.onnx), found)


def _inlined(path: Path) -> ir.Model:
    """Reads a model; weights in bodies of functions count too, once for every call."""
    model = read_model(path)
    inline_functions(model)
    return model


def left_in_float(storage: Storage, file_bytes: int) -> dict[str, Any]:
    """Returns the float constants outside all units as JSON, and a warning if they matter."""
    facts: dict[str, Any] = {
        "left_in_float": [
            {"name": o.name, "entries": o.entries, "bytes": o.bytes, "reason": o.why}
            for o in storage.loose
        ]
    }
    warning = outside_warning(storage, file_bytes)
    return {**facts, "warning": warning} if warning else facts


def outside_warning(storage: Storage, file_bytes: int) -> str:
    """Says how much of a file the figure over units leaves out; empty below 1 %."""
    share = storage.rest / max(file_bytes, 1)
    if share <= _NEGLIGIBLE:
        return ""
    largest = f", the largest of them {storage.loose[0].name!r}" if storage.loose else ""
    return (
        f"{share:.1%} of the file's bytes are constants outside all units{largest}: "
        f"{storage.whole_file_bits:.3f} bits per weight with all floats counted, "
        f"{storage.bits_per_weight:.3f} over units alone"
    )


def attention_facts(one: Attention) -> dict[str, Any]:
    """Returns an attention's line as JSON."""
    names = ("query", "key", "value", "output")
    units = {name: part.unit.name for name, part in zip(names, one.projections, strict=True)}
    return {
        "node": str(one.node.name),
        "operator": one.node.op_type,
        **units,
        "heads": one.heads,
        "kv_heads": one.kv_heads,
        "head_size": one.head_size,
        "value_size": one.value_size,
        "scale": one.scale,
        "causal": one.causal,
        "masked": one.masked,
        "rope": one.rope,
    }


def unit_facts(unit: StoredWeight) -> dict[str, Any]:
    """Returns a unit's line as JSON."""
    return {
        "name": unit.name,
        "kinds": list(unit.kinds),
        "rows": unit.rows,
        "columns": unit.columns,
        "widths": {f"{bits:g}": rows for bits, rows in unit.widths},
        "bits": unit.bits,
        "bytes": unit.bytes,
        "resident_bytes": unit.resident,
        "reason": unit.why_float,
    }


def model_bytes(path: Path) -> int:
    """Returns the bytes of an ONNX file and of the external data that it names.

    The model has been read, so its paths are known to be safe.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path, *(path.parent / str(name) for name in names)]
    return sum(one.stat().st_size for one in files)


def _tensors(model: Any) -> list[Any]:
    """Returns every tensor of a protobuf that may lie in another file."""
    found: list[Any] = []
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        found += list(getattr(graph, "initializer", ()))
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.t, *attribute.tensors]
                waiting += [attribute.g, *attribute.graphs]
    return found


@dataclass(frozen=True)
class Bits:
    """Bits per weight of a result.

    Attributes:
        bits: Stored, over the weights of the original's units.
        whole_file_bits: Stored, over all units and loose floats of the result.
        resident_bits: In memory after loading (estimated).
    """

    bits: float
    whole_file_bits: float
    resident_bits: float


def bits_per_weight(original: Path, result: Path) -> Bits:
    """Returns the bits per weight of ``result``.

    Weights are counted in the original; what the original stores beside them is no weight in
    the result either.

    Raises:
        InputError: A file is no readable ONNX model.
    """
    before, after = stored(_inlined(original)), stored(_inlined(result))
    weights, size = before.weights, after.bytes + max(after.rest - before.rest, 0)
    return Bits(
        size * 8 / weights if weights else 0.0,
        after.whole_file_bits,
        after.resident * 8 / weights if weights else 0.0,
    )

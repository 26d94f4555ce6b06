"""mpqc inspect: what the weights of any ONNX file take, recomputed from its graph alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..frontend.model_source import locate
from ..ir import InputError, read_model
from ..ir.analysis.attention import Attention, Found, find_attention
from ..ir.analysis.storage import Storage, StoredWeight, stored


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
            "resident_bits_per_weight": self.storage.resident_bits_per_weight,
            "weights": self.storage.weights,
            "weight_bytes": self.storage.bytes,
            "other_bytes": self.storage.rest,
            "file_bytes": self.file_bytes,
            "units": [unit_facts(unit) for unit in self.storage.units],
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
    model = read_model(source.onnx)
    found = find_attention(model)
    return Inspection(source.onnx, stored(model), model_bytes(source.onnx), found)


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


def bits_per_weight(original: Path, result: Path) -> tuple[float, float]:
    """Returns the stored and the resident bits per weight of ``result``.

    Weights are counted in the original; what the original stores beside them is no weight in
    the result either.

    Raises:
        InputError: A file is no readable ONNX model.
    """
    before, after = stored(read_model(original)), stored(read_model(result))
    if not before.weights:
        return 0.0, 0.0
    size = after.bytes + after.rest - before.rest
    return size * 8 / before.weights, after.resident * 8 / before.weights

"""The inputs of a model, classified by their use in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from ..ir import DECODER_TOKENS, InputError
from .model_source import section

Role = Literal["tokens", "source", "mask", "positions", "segments", "lengths", "past", "other"]

_PASSED_THROUGH = {
    *("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"),
    "Unsqueeze",
}
_LOOKUPS = {"Gather", "GatherBlockQuantized"}
_TOKEN_NAMES = ("input_ids", "tokens", "token_ids", "ids", "input")
_LARGEST_SAMPLE = 1 << 27


@dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: Its name.
        dims: Its axes: sizes, or the names of those that vary (empty when unnamed).
        dtype: The NumPy type of its feeds.
        role: What it is for; "source" is the text that an encoder reads while a decoder reads
            the tokens.
        vocabulary: Rows of the table that the ids look up; 0 for what looks up none.
        window: Rows that a cache of a sliding window must have even while it is empty.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: np.dtype[Any]
    role: Role
    vocabulary: int = 0
    window: int = 0

    @property
    def length(self) -> int | None:
        """The fixed number of tokens, if the last axis has one."""
        last = self.dims[-1] if self.dims else None
        return last if isinstance(last, int) else None


def model_inputs(model: ir.Model) -> list[ModelInput]:
    """Returns the inputs that a caller must feed, with their roles.

    Raises:
        InputError: An input has no type or no known rank.
    """
    values = [value for value in model.graph.inputs if value.const_value is None]
    tokens, vocabulary = _token_input(values)
    roles: dict[ir.Value | None, Role] = {tokens: "source"}
    roles[next((one for one in values if one.name == DECODER_TOKENS), tokens)] = "tokens"
    return [_describe(value, roles.get(value), vocabulary) for value in values]


def _describe(value: ir.Value, known: Role | None, vocabulary: int) -> ModelInput:
    if value.dtype in (None, ir.DataType.UNDEFINED) or value.shape is None:
        raise InputError(f"the input {value.name!r} of the model has no type or shape")
    assert value.dtype is not None
    dims = tuple(dim if isinstance(dim, int) else str(dim.value or "") for dim in value.shape)
    dtype = np.dtype(value.dtype.numpy())
    role = known or _role(str(value.name), len(dims), dtype)
    rows = vocabulary if known else _table_rows(value)
    return ModelInput(str(value.name), dims, dtype, role, rows, _window(value))


def _window(value: ir.Value) -> int:
    """Returns the tokens that the operators reading a windowed cache look back at."""
    return max(
        (
            node.attributes.get_int("local_window_size", 0)
            for node, _ in value.uses()
            if node.attributes.get_int("sliding_window_cache", 0)
        ),
        default=0,
    )


def _role(name: str, rank: int, dtype: np.dtype[Any]) -> Role:
    """The role that an input's name announces, by the convention of transformers."""
    lowered = name.lower()
    if "past" in lowered or "cache" in lowered:
        return "past" if rank >= 3 else "other"
    if "mask" in lowered:
        return "mask"
    if "position" in lowered:
        return "positions"
    if "token_type" in lowered or "segment" in lowered:
        return "segments"
    if "len" in lowered and rank <= 1 and dtype.kind in "iu":
        return "lengths"
    return "other"


def _token_input(values: list[ir.Value]) -> tuple[ir.Value | None, int]:
    """Returns the input that looks up the largest table, and that table's rows."""
    integers = _id_inputs(values)
    sized = [(_table_rows(value), value) for value in integers]
    best = max(sized, key=lambda pair: pair[0], default=(0, None))
    if best[0] > 0 and best[1] is not None:
        return best[1], best[0]
    named = [value for name in _TOKEN_NAMES for value in integers if value.name == name]
    return (named[0], 0) if named else (None, 0)


def _id_inputs(values: list[ir.Value]) -> list[ir.Value]:
    """Returns the inputs that can be token ids."""
    return [
        value
        for value in values
        if value.dtype in (ir.DataType.INT64, ir.DataType.INT32)
        and value.shape is not None
        and len(value.shape) == 2
    ]


def _table_rows(value: ir.Value) -> int:
    """Returns the rows of the largest table that ``value`` indexes; 0 when there is none."""
    rows, waiting = 0, [value]
    while waiting:
        for usage in waiting.pop().uses():
            node = usage.node
            if node.op_type in _LOOKUPS and usage.idx == 1:
                rows = max(rows, _rows(node.inputs[0]))
            elif node.op_type in _PASSED_THROUGH and usage.idx == 0:
                waiting.append(node.outputs[0])
    return rows


def _rows(table: ir.Value | None) -> int:
    """Returns the rows of a stored float table, seen through views."""
    while table is not None and table.const_value is None:
        node = table.producer()
        if node is None or not node.inputs or node.op_type not in {"Identity", "Cast"}:
            break
        table = node.inputs[0]
    producer = table.producer() if table is not None else None
    if producer is not None and producer.op_type == "Constant":
        attribute = producer.attributes.get("value")
        shape = attribute.as_tensor().shape if attribute is not None else None
    else:
        shape = table.shape if table is not None else None
    if shape is None or len(shape) != 2 or not isinstance(shape[0], int):
        return 0
    return shape[0]


@dataclass(frozen=True)
class HeadShape:
    """The sizes of key and value heads, where the graph leaves them open."""

    heads: int | None
    size: int | None


def head_shape(genai: Mapping[str, Any], settings: Mapping[str, Any]) -> HeadShape:
    """Reads the sizes of heads from genai_config.json, else from config.json."""
    decoder = section(genai, "model", "decoder")
    heads = decoder.get("num_key_value_heads") or settings.get("num_key_value_heads")
    queries = settings.get("num_attention_heads") or settings.get("n_head")
    hidden = settings.get("hidden_size") or settings.get("n_embd")
    size = decoder.get("head_size") or settings.get("head_dim")
    if not size and isinstance(hidden, int) and isinstance(queries, int) and queries > 0:
        size = hidden // queries
    return HeadShape(_positive(heads or queries), _positive(size))


def longest_sequence(genai: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """Returns the most tokens that the model's position table allows, if a file says so."""
    found = [
        _positive(section(genai, "model").get("context_length")),
        _positive(settings.get("max_position_embeddings")),
        _positive(settings.get("n_positions")),
        _positive(settings.get("max_target_positions")),
    ]
    known = [one for one in found if one is not None]
    return min(known) if known else None


def _positive(value: Any) -> int | None:
    return (
        value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
    )


def token_feed(
    inputs: list[ModelInput], ids: np.ndarray, heads: HeadShape
) -> dict[str, np.ndarray]:
    """Returns everything that the model wants for one sequence of token ids.

    The mask is all ones, positions count from zero, segments are zero, and the cache is empty.
    An encoder reads the first half of the ids, its decoder the second.

    Raises:
        InputError: An input has none of those roles, or a size that nothing gives.
    """
    if not any(one.role == "source" for one in inputs):
        return {one.name: _fill(one, ids, heads) for one in inputs}
    first, second = np.array_split(ids, 2)
    return {
        one.name: _fill(one, second if _is_decoders(one) else first, heads) for one in inputs
    }


def _is_decoders(one: ModelInput) -> bool:
    return one.role in ("tokens", "past") or "decoder" in one.name


def _fill(one: ModelInput, ids: np.ndarray, heads: HeadShape) -> np.ndarray:
    if one.role == "past":
        return np.zeros(_past_shape(one, heads), one.dtype)
    if one.role == "lengths":
        dims = [dim if isinstance(dim, int) else 1 for dim in one.dims]
        return np.full(dims, len(ids), one.dtype)
    if one.role == "other" or len(one.dims) != 2:
        raise InputError(
            f"cannot make up the input {one.name!r} from text",
            hint="give every input as arrays: --calibration samples.npz",
        )
    rows = {
        "tokens": ids,
        "source": ids,
        "mask": np.ones_like(ids),
        "positions": np.arange(len(ids)),
        "segments": np.zeros_like(ids),
    }
    batch = one.dims[0] if isinstance(one.dims[0], int) else 1
    _check_size(one, (batch, len(ids)))
    return np.repeat(rows[one.role][None].astype(one.dtype), batch, axis=0)


def _past_shape(one: ModelInput, heads: HeadShape) -> tuple[int, ...]:
    """Returns the shape of an empty cache: batch 1, nothing past, the model's heads."""
    shape = []
    for axis, dim in enumerate(one.dims):
        if isinstance(dim, int):
            shape.append(dim)
        elif axis == 0:
            shape.append(1)
        elif len(one.dims) == 4 and axis == 3:
            shape.append(_known(one, "head size", heads.size))
        elif len(one.dims) == 4 and axis == 1:
            shape.append(_known(one, "number of heads", heads.heads))
        else:
            shape.append(one.window)
    _check_size(one, shape)
    return tuple(shape)


def _check_size(one: ModelInput, shape: Sequence[int]) -> None:
    """Refuses a sample beyond sense, empty ones along other axes included."""
    if prod(max(dim, 1) for dim in shape) * one.dtype.itemsize > _LARGEST_SAMPLE:
        raise InputError(f"the input {one.name!r} is too large to be made up: {tuple(shape)}")


def _known(one: ModelInput, what: str, size: int | None) -> int:
    if size is None:
        raise InputError(
            f"the {what} of the cache input {one.name!r} is not in the graph",
            hint="put genai_config.json or config.json beside the model",
        )
    return size


def random_feed(
    inputs: list[ModelInput], length: int, source: np.random.Generator, heads: HeadShape
) -> dict[str, np.ndarray]:
    """Returns noise that fits the inputs: open sizes are 1 for axis 0, else ``length``.

    Integers of unknown meaning are zero; ids are uniform over the rows of what they look up.

    Raises:
        InputError: The model asks for an unreasonable amount of input.
    """
    return {one.name: _noise(one, length, source, heads) for one in inputs}


def _noise(
    one: ModelInput, length: int, source: np.random.Generator, heads: HeadShape
) -> np.ndarray:
    if one.role == "past":
        return np.zeros(_past_shape(one, heads), one.dtype)
    shape = tuple(
        dim if isinstance(dim, int) else (1 if axis == 0 else length)
        for axis, dim in enumerate(one.dims)
    )
    _check_size(one, shape)
    if one.role == "lengths":
        return np.full(shape, length, one.dtype)
    if one.role in ("tokens", "source", "other") and one.vocabulary:
        return source.integers(0, one.vocabulary, shape).astype(one.dtype)
    if one.role == "mask":
        return np.ones(shape, one.dtype)
    if one.role == "positions" and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(one.dtype)
    if one.dtype.kind == "b":
        return np.ones(shape, one.dtype)
    if one.dtype.kind in "iu":
        return np.zeros(shape, one.dtype)
    return source.standard_normal(shape).astype(one.dtype)

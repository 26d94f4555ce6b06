"""How a scale of columns passes through operators: back to their inputs, and forth.

Everything here holds for positive scales only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir import FLOAT_TYPES
from ...ir.operands import cast_type
from ...ir.units import stored_tensor
from .labels import NONE, Labels, reshaped, stripped, transposed
from .shapes import Dim, dims_of

CONTRIB = "com.microsoft"
Way = list[tuple[int, np.ndarray]]  # inputs that have to be scaled together

# f(s x) = s f(x) for s > 0; the first input carries the channels.
_HOMOGENEOUS = {"Relu", "LeakyRelu", "Abs", "Neg", "Identity", "Dropout"}
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_SUMS = {"Add", "Sub", "Sum"}
# By operator: the inputs that multiply or shift the normalized value.
_NORMS = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    (CONTRIB, "SimplifiedLayerNormalization"): (1,),
    (CONTRIB, "SkipSimplifiedLayerNormalization"): (2,),
    (CONTRIB, "SkipLayerNormalization"): (2, 3),
}


class Refusal(Exception):
    """Why columns cannot be scaled; never leaves this package."""


def label_of(node: ir.Node) -> str:
    """Returns how users are told of a node."""
    return f"{node.op_type} {node.name!r}"


def _kind(node: ir.Node) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain), node.op_type


def scaled_constants(node: ir.Node, value: ir.Value, labels: np.ndarray) -> Way:
    """Returns the weights of a norm, which take the scale of its first output."""
    places = _NORMS.get(_kind(node), ())
    if not places or value is not node.outputs[0]:
        return []
    if _kind(node) == ("", "LayerNormalization") and labels.ndim != 1:
        raise Refusal(f"{label_of(node)} normalizes more than the channels")
    return [(at, labels) for at in places if at < len(node.inputs)]


def back(
    node: ir.Node, value: ir.Value, labels: np.ndarray, known: Labels, cache: bool
) -> list[Way]:
    """Returns the ways in which the inputs of ``node`` may be scaled so that ``value`` is.

    Args:
        node: No product by a unit.
        value: One of its outputs.
        labels: Of ``value``.
        known: Which labels have to agree.
        cache: Whether a key-value cache may be scaled.

    Raises:
        Refusal: There is no way.
    """
    domain, op = _kind(node)
    if _NORMS.get((domain, op)) and value is node.outputs[0]:
        return []
    if domain == CONTRIB and op in ("GroupQueryAttention", "MultiHeadAttention"):
        return [_attended(node, value, labels, known, cache)]
    if domain or value is not node.outputs[0]:
        raise Refusal(f"{label_of(node)} cannot take it")
    if _is_homogeneous(node):
        return [[(0, labels)]]
    if op in _SUMS:
        return [[(at, labels) for at, one in enumerate(node.inputs) if one is not None]]
    if op == "Mul":
        return _factors(node, labels)
    if op == "Div":
        return [[(0, labels)]]
    return [[_moved_back(node, labels, known)]]


def _factors(node: ir.Node, labels: np.ndarray) -> list[Way]:
    """Returns the factors of a Mul that have all channels: a constant first."""
    if node.inputs[0] is node.inputs[1]:
        raise Refusal(f"{label_of(node)} squares it")
    full = [at for at in (0, 1) if _has_channels(node.inputs[at], labels)]
    if not full:
        raise Refusal(f"{label_of(node)} has no factor with all channels")
    full.sort(key=lambda at: not _is_constant(node.inputs[at]))
    return [[(at, labels)] for at in full]


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and stored_tensor(value) is not None


def _has_channels(value: ir.Value | None, labels: np.ndarray) -> bool:
    dims = dims_of(value)
    if dims is None:
        return value is not None and not _is_constant(value)
    tail = dims[-labels.ndim :]
    pairs = zip(tail, labels.shape, strict=False)
    return len(tail) == labels.ndim and all(d != 1 or have == 1 for d, have in pairs)


def _is_homogeneous(node: ir.Node) -> bool:
    """Tells whether ``node`` scales its result as its first input is scaled."""
    if node.op_type == "Cast":
        return cast_type(node) in FLOAT_TYPES
    return node.op_type in _HOMOGENEOUS or _is_rectifier(node)


def _is_rectifier(node: ir.Node) -> bool:
    """Tells whether ``node`` is a Clip at zero that is open upwards."""
    if node.op_type != "Clip" or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    low = stored_tensor(node.inputs[1])
    bounded = len(node.inputs) > 2 and node.inputs[2] is not None
    return low is not None and not bounded and not np.any(low.numpy())


def _moved_back(node: ir.Node, labels: np.ndarray, known: Labels) -> tuple[int, np.ndarray]:
    """Returns where the labels of an operator's result stand in its input."""
    op, source = node.op_type, dims_of(node.inputs[0] if node.inputs else None)
    if op in _VIEWS:
        return 0, _through_view(node, labels, dims_of(node.outputs[0]), source)
    if op == "Transpose":
        perm = _perm(node, labels, source)
        return 0, transposed(labels, list(np.argsort(perm)))
    if op == "Expand" and source is not None:
        return 0, known.narrowed(labels, source)
    if op == "MatMul":
        return _through_product(node, labels)
    raise Refusal(f"{label_of(node)} cannot take it")


def _through_view(
    node: ir.Node, labels: np.ndarray, before: list[Dim] | None, after: list[Dim] | None
) -> np.ndarray:
    found = None if before is None or after is None else reshaped(labels, before, after)
    if found is None:
        raise Refusal(f"{label_of(node)} may move the channels to another axis")
    return found


def _perm(node: ir.Node, labels: np.ndarray, source: list[Dim] | None) -> list[int]:
    rank = len(source) if source is not None else labels.ndim
    perm = list(node.attributes.get_ints("perm", list(reversed(range(rank)))))
    if labels.ndim > len(perm):
        raise Refusal(f"{label_of(node)} has another rank")
    return perm


def _through_product(node: ir.Node, labels: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns which factor of ``A B`` can take a scale of the result's columns or rows."""
    wide = labels.reshape((1,) * max(2 - labels.ndim, 0) + labels.shape)
    if wide.shape[-2] == 1:
        return 1, wide
    if wide.shape[-1] == 1:
        return 0, wide
    raise Refusal(f"{label_of(node)} mixes the channels")


def _attended(
    node: ir.Node, value: ir.Value, labels: np.ndarray, known: Labels, cache: bool
) -> Way:
    """Returns the value input of a fused attention; its heads may be packed behind others."""
    if value is not node.outputs[0] or labels.ndim != 1:
        raise Refusal(f"{label_of(node)} cannot take it")
    if node.op_type == "MultiHeadAttention":
        return [(2, _plain_heads(node, labels))]
    _check_cache(node, cache)
    heads, shared = _heads(node)
    split = labels.reshape(heads, -1)
    grouped = split.reshape(shared, heads // shared, -1)
    known.join(grouped, grouped[:, :1])
    values = grouped[:, 0].reshape(-1)
    if node.inputs[2] is not None:
        return [(2, values)]
    others = np.full((heads + shared) * split.shape[1], NONE)
    return [(0, np.concatenate([others, values]))]


def _heads(node: ir.Node) -> tuple[int, int]:
    return node.attributes.get_int("num_heads"), node.attributes.get_int("kv_num_heads")


def _plain_heads(node: ir.Node, labels: np.ndarray) -> np.ndarray:
    """Checks that the third input of a MultiHeadAttention is all there is of its values."""
    given = [at for at, one in enumerate(node.inputs) if one is not None]
    if (
        2 not in given
        or set(given) & {3, 6, 7}
        or any(len(o.uses()) for o in node.outputs[1:])
    ):
        raise Refusal(f"{label_of(node)} packs, shifts or caches its values")
    return labels


def _check_cache(node: ir.Node, cache: bool) -> None:
    outputs = [one for one in node.outputs[1:] if one.name]
    seen = [one for one in outputs if one.is_graph_output() or one.uses()]
    if seen and not cache:
        raise Refusal(f"{label_of(node)} hands out its values as a cache")


def forth(
    node: ir.Node,
    index: int,
    labels: np.ndarray,
    known: Labels,
    others: Sequence[int],
    cache: bool,
) -> list[tuple[ir.Value, np.ndarray]]:
    """Returns what else is scaled when an input of ``node`` is.

    Args:
        node: A reader; no product by a unit.
        index: Which of its inputs is scaled.
        labels: Of that input.
        known: Which labels have to agree.
        others: Its inputs that are scaled too.
        cache: Whether a key-value cache may be scaled.

    Raises:
        Refusal: The node does not commute with scaling.
    """
    domain, op = _kind(node)
    result = node.outputs[0]
    if domain == CONTRIB and op in ("GroupQueryAttention", "MultiHeadAttention"):
        return [(result, _attended_forth(node, index, labels, cache))]
    if domain:
        raise Refusal(f"{label_of(node)} reads it too")
    if index == 0 and _is_homogeneous(node):
        return [(result, labels)]
    if op in _SUMS:
        return [(result, labels)]
    if op in ("Mul", "Div"):
        if others or (op == "Div" and index == 1) or node.inputs[0] is node.inputs[-1]:
            raise Refusal(f"{label_of(node)} multiplies scaled values")
        return [(result, labels)]
    if index == 0 and (op in _VIEWS or op in ("Transpose", "Expand")):
        return [(result, _moved_forth(node, labels))]
    if op == "MatMul" and not others:
        return [(result, _multiplied_forth(node, index, labels))]
    raise Refusal(f"{label_of(node)} reads it too")


def _moved_forth(node: ir.Node, labels: np.ndarray) -> np.ndarray:
    source = dims_of(node.inputs[0])
    if node.op_type in _VIEWS:
        return _through_view(node, labels, source, dims_of(node.outputs[0]))
    if node.op_type == "Transpose":
        return transposed(labels, _perm(node, labels, source))
    return labels  # Expand: what is one long stays one label


def _multiplied_forth(node: ir.Node, index: int, labels: np.ndarray) -> np.ndarray:
    """Returns the labels of ``A B`` when one factor is scaled off the axis of the sum."""
    wide = labels.reshape((1,) * max(2 - labels.ndim, 0) + labels.shape)
    if wide.shape[-2 if index == 1 else -1] != 1:
        raise Refusal(f"{label_of(node)} sums over the channels and has no stored weight")
    return stripped(wide)


def _attended_forth(node: ir.Node, index: int, labels: np.ndarray, cache: bool) -> np.ndarray:
    if node.op_type == "MultiHeadAttention":
        if index != 2:
            raise Refusal(f"{label_of(node)} compares it")
        return _plain_heads(node, labels)
    _check_cache(node, cache)
    heads, shared = _heads(node)
    packed = node.inputs[2] is None
    if index != (0 if packed else 2):
        raise Refusal(f"{label_of(node)} compares it")
    values = labels
    if packed:
        width = len(labels) // (heads + 2 * shared)
        values = labels[(heads + shared) * width :]
        if np.any(labels[: (heads + shared) * width] != NONE):
            raise Refusal(f"{label_of(node)} compares it")
    split = values.reshape(shared, 1, -1)
    return np.repeat(split, heads // shared, axis=1).reshape(-1)

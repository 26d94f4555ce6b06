"""Nodes of an untrusted file, held against the schemas of their operators.

Code that reads a node may count on the inputs that the operator needs, on at least one output,
and on attributes of the declared types. Operators that nothing describes are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import cast

import onnx
import onnx_ir as ir

from .errors import InputError
from .proto_checks import BROKEN_HINT, nested

_MOST = 1 << 31
_MOST_AXES = 64  # of any tensor in sense
_INT = int(onnx.AttributeProto.INT)
_CONSTANT_VALUES = (
    "value",
    "sparse_value",
    "value_float",
    "value_floats",
    "value_int",
    "value_ints",
    "value_string",
    "value_strings",
)


@dataclass(frozen=True)
class _Signature:
    """What an operator takes and gives.

    Attributes:
        inputs: Smallest and largest number of inputs.
        needed: Positions of the inputs that must not be left out by an empty name.
        outputs: Smallest and largest number of outputs.
        types: Type of every attribute, as ``AttributeProto.type`` counts.
        required: Attributes that must be there.
    """

    inputs: tuple[int, int]
    needed: tuple[int, ...]
    outputs: tuple[int, int]
    types: Mapping[str, int]
    required: tuple[str, ...]


def _of_runtime(
    inputs: tuple[int, int], needed: int, required: Sequence[str], optional: Sequence[str] = ()
) -> _Signature:
    """Describes an operator of ONNX Runtime by what is read of it: integers all of them."""
    types = dict.fromkeys((*required, *optional), _INT)
    return _Signature(inputs, tuple(range(needed)), (1, _MOST), types, tuple(required))


# The onnx package has no schemas for com.microsoft.
_PRODUCT = ("K", "N", "block_size")
_OF_RUNTIME = {
    "Attention": _of_runtime((1, _MOST), 1, ["num_heads"]),
    "FusedMatMul": _of_runtime((2, 2), 2, [], ["transA", "transB"]),
    "GatherBlockQuantized": _of_runtime(
        (3, 4), 3, [], ["bits", "block_size", "gather_axis", "quantize_axis"]
    ),
    "GroupQueryAttention": _of_runtime((7, _MOST), 1, ["num_heads", "kv_num_heads"]),
    "MatMulBnb4": _of_runtime((3, 3), 3, [*_PRODUCT, "quant_type"]),
    "MatMulNBits": _of_runtime((3, 6), 3, _PRODUCT, ["bits"]),
    "MultiHeadAttention": _of_runtime((1, _MOST), 1, ["num_heads"]),
    "QGemm": _of_runtime((6, 9), 6, [], ["transA", "transB"]),
}


# Fields of attributes that have no default: what such an attribute has to hold.
_HOLDERS = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}


def _is_positive(value: int) -> bool:
    return 0 < value < _MOST


def _is_width(value: int) -> bool:
    return 1 <= value <= 8


def _is_type(value: int) -> bool:
    return value in {int(one) for one in ir.DataType} - {0}


def _is_axis(value: int) -> bool:
    """Runtimes cut larger ones to 32 bits: an axis of 2^40 is axis 0 to them."""
    return -_MOST_AXES <= value < _MOST_AXES


# What an integer must be for the operator to mean anything.
_SENSE: Mapping[str, Mapping[str, Callable[[int], bool]]] = {
    "Cast": {"to": _is_type},
    "GatherBlockQuantized": {"bits": _is_width, "block_size": _is_positive},
    "MatMulBnb4": dict.fromkeys(_PRODUCT, _is_positive),
    "MatMulNBits": {**dict.fromkeys(_PRODUCT, _is_positive), "bits": _is_width},
    **dict.fromkeys(
        ("Attention", "GroupQueryAttention", "MultiHeadAttention"),
        dict.fromkeys(("num_heads", "kv_num_heads"), _is_positive),
    ),
}


@lru_cache(maxsize=4096)
def _signature(domain: str, operator: str, opset: int) -> _Signature | None:
    """Returns what describes an operator in a version of its set, if anything does."""
    if domain == "com.microsoft":
        return _OF_RUNTIME.get(operator)
    try:
        schema = onnx.defs.get_schema(operator, max(0, min(opset, _MOST - 1)), domain)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return _Signature(
        inputs=(schema.min_input, schema.max_input),
        needed=tuple(at for at, one in enumerate(schema.inputs) if one.option == single),
        outputs=(schema.min_output, schema.max_output),
        types={name: cast("int", one.type) for name, one in schema.attributes.items()},
        required=tuple(name for name, one in schema.attributes.items() if one.required),
    )


def check_nodes(model: onnx.ModelProto) -> None:
    """Refuses nodes that contradict the schemas of their operators.

    Raises:
        InputError: Names the first such node and what is wrong with it.
    """
    for body in (model.graph, *model.functions):
        imports = chain(model.opset_import, getattr(body, "opset_import", ()))
        opsets = {_domain(entry.domain): entry.version for entry in imports}
        for graph in nested(body):
            for node in graph.node:
                _check_general(node, in_function=body is not model.graph)
                domain = _domain(node.domain)
                if not domain and not opsets.get(domain):
                    raise _refusal(node, "is a standard operator, but no opset is imported")
                signature = _signature(domain, node.op_type, opsets.get(domain, 0))
                if signature is not None:
                    _check_against(node, signature)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _refusal(node: onnx.NodeProto, problem: str) -> InputError:
    return InputError(f"{node.op_type[:60]} {node.name[:100]!r} {problem}", hint=BROKEN_HINT)


def _check_general(node: onnx.NodeProto, *, in_function: bool) -> None:
    """Checks what holds for every node, whatever its operator."""
    if not node.output:
        raise _refusal(node, "has no outputs")
    names = [one.name for one in node.attribute]
    if len(set(names)) < len(names):
        raise _refusal(node, "gives an attribute twice")
    for attribute in node.attribute:
        if attribute.ref_attr_name and not in_function:
            raise _refusal(node, f"takes {attribute.name!r} from a function, but is in none")
        if not attribute.type:
            raise _refusal(node, f"gives {attribute.name!r} without saying its type")
        field = _HOLDERS.get(attribute.type)
        if field is not None and not attribute.ref_attr_name and not attribute.HasField(field):
            raise _refusal(node, f"gives {attribute.name!r} without its value")


def _check_against(node: onnx.NodeProto, signature: _Signature) -> None:
    _check_count(node, "inputs", len(node.input), *signature.inputs)
    _check_count(node, "outputs", len(node.output), *signature.outputs)
    for at in signature.needed:
        if at < len(node.input) and not node.input[at]:
            raise _refusal(node, f"leaves out input {at}, which its operator needs")
    given = {one.name: one for one in node.attribute}
    for name in signature.required:
        if name not in given:
            raise _refusal(node, f"lacks the attribute {name!r}")
    for name, attribute in given.items():
        kind = signature.types.get(name, attribute.type)
        if attribute.type != kind:
            found, wanted = map(onnx.AttributeProto.AttributeType.Name, (attribute.type, kind))
            raise _refusal(node, f"gives {name!r} as {found}; its operator has {wanted}")
    _check_sense(node, {k: one for k, one in given.items() if not one.ref_attr_name})


def _check_count(node: onnx.NodeProto, what: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        wanted = f"{least} to {most}" if most < _MOST - 1 else f"at least {least}"
        wanted = f"{least}" if least == most else wanted
        raise _refusal(node, f"has {count} {what}; its operator has {wanted}")


def _check_sense(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> None:
    """Checks values without which an operator means nothing."""
    for name, makes_sense in {"axis": _is_axis, **_SENSE.get(node.op_type, {})}.items():
        if name in given and given[name].type == _INT and not makes_sense(given[name].i):
            raise _refusal(node, f"has {name} {given[name].i}, which makes no sense")
    perm = list(given["perm"].ints) if "perm" in given else []
    if node.op_type == "Transpose" and sorted(perm) != list(range(len(perm))):
        raise _refusal(node, f"has perm {perm[:16]}, which is no permutation")
    values = sum(one.name in _CONSTANT_VALUES for one in node.attribute)
    if node.op_type == "Constant" and not values == len(node.attribute) == 1:
        raise _refusal(node, f"has {values} values; a constant has one, and nothing else")

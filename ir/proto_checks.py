"""What an ONNX file may hold, checked before the IR is built from it.

The walks are iterative: graphs nest as deep as a hostile file likes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from .errors import InputError
from .proto_texts import check_texts
from .tensor_files import (
    LARGEST_RANK,
    LARGEST_SIZE,
    TensorFiles,
    byte_size,
    element_count,
    extent_of,
)

_KNOWN_TYPES = {int(one) for one in ir.DataType} - {0}
BROKEN_HINT = "export the model again; onnx.checker.check_model may say more"


Body = onnx.GraphProto | onnx.FunctionProto


def nested(*bodies: Body) -> Iterator[Body]:
    """Yields graphs and function bodies, and everything nested in them."""
    todo = list(bodies)
    while todo:
        graph = todo.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    todo.append(attribute.g)
                todo.extend(attribute.graphs)


def _sparse_parts(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for one in sparse:
        yield one.values
        yield one.indices


def tensors_in(graph: Body) -> Iterator[onnx.TensorProto]:
    """Yields every tensor that a graph holds itself: in initializers and attributes."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        yield from _sparse_parts(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _sparse_parts([attribute.sparse_tensor])
            yield from _sparse_parts(attribute.sparse_tensors)


_DATA_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)


def _check_inline(tensor: onnx.TensorProto) -> None:
    count = element_count(tensor)
    dtype = ir.DataType(tensor.data_type)
    if not tensor.HasField("raw_data"):
        _check_typed(tensor, dtype, count)
    elif dtype == ir.DataType.STRING:
        raise InputError(
            f"tensor {tensor.name!r} holds strings as raw bytes", hint=BROKEN_HINT
        )
    elif len(tensor.raw_data) != (expected := byte_size(dtype, count)):
        raise InputError(
            f"tensor {tensor.name!r} has {len(tensor.raw_data)} bytes where its shape wants "
            f"{expected}",
            hint=BROKEN_HINT,
        )


def _check_typed(tensor: onnx.TensorProto, dtype: ir.DataType, count: int) -> None:
    """Checks a tensor that lists its elements in the field of its type."""
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    for other in _DATA_FIELDS:
        if other != field and len(getattr(tensor, other)):
            raise InputError(
                f"tensor {tensor.name!r} of type {dtype.name} has its elements in {other}",
                hint=BROKEN_HINT,
            )
    allowed = {count}
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        allowed = {2 * count}
    elif dtype != ir.DataType.STRING and dtype.bitwidth < 8:
        allowed.add(byte_size(dtype, count))
    if len(getattr(tensor, field)) not in allowed:
        raise InputError(
            f"tensor {tensor.name!r} has {len(getattr(tensor, field))} elements where its "
            f"shape {list(tensor.dims)} wants {count}",
            hint=BROKEN_HINT,
        )


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in _KNOWN_TYPES:
        raise InputError(f"tensor {tensor.name!r} has no known data type: {tensor.data_type}")
    if tensor.HasField("segment"):
        raise InputError(
            f"tensor {tensor.name!r} is stored in segments, which nothing supports"
        )
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if tensor.data_type == onnx.TensorProto.STRING:
            raise InputError(f"tensor {tensor.name!r}: strings cannot be external data")
        extent_of(tensor)
    else:
        if tensor.external_data:
            raise InputError(
                f"tensor {tensor.name!r} is in the model, but names external data too",
                hint=BROKEN_HINT,
            )
        _check_inline(tensor)


def check_tensors(model: onnx.ModelProto, files: TensorFiles) -> None:
    """Refuses tensors that are malformed, unsafe, or stored in a file that is not there.

    Raises:
        InputError: Names the tensor, and for missing files how many tensors they hold.
    """
    missing: dict[str, list[str]] = {}
    for graph in nested(model.graph, *model.functions):
        for tensor in tensors_in(graph):
            _check_tensor(tensor)
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                extent = extent_of(tensor)
                if files.path_of(extent.location) is None:
                    missing.setdefault(extent.location, []).append(tensor.name)
                else:
                    files.bytes_of(tensor.name, extent)
    for location, names in sorted(missing.items()):
        raise InputError(
            f"external data file {location!r} is missing; it holds "
            f"{len(names)} of the model's tensors, the first of them {names[0]!r}",
            hint="put the file beside the model, under the name that the model gives it",
        )


def _check_graph(graph: Body) -> None:
    for node in graph.node:
        if node.op_type == "EPContext":
            raise InputError(
                f"node {node.name!r} (EPContext) holds a compiled engine, which stays closed",
                hint="give the model before it was compiled for one execution provider",
            )
    sparse = isinstance(graph, onnx.GraphProto) and graph.sparse_initializer
    if sparse or any(a.type in (11, 12) for node in graph.node for a in node.attribute):
        raise InputError(f"graph {graph.name!r} holds sparse tensors, which are not supported")
    if isinstance(graph, onnx.GraphProto):
        for name, times in Counter(tensor.name for tensor in graph.initializer).items():
            if times > 1 or not name:
                raise InputError(
                    f"initializer {name!r} is given twice or unnamed", hint=BROKEN_HINT
                )
        for info in (*graph.input, *graph.output, *graph.value_info):
            _check_shape(info)


def _check_shape(info: onnx.ValueInfoProto) -> None:
    """Checks the sizes in a value's type; -1, with which some writers say unknown, goes."""
    if not info.type.HasField("tensor_type"):
        return
    dims = info.type.tensor_type.shape.dim
    if len(dims) > LARGEST_RANK:
        raise InputError(f"value {info.name!r} has {len(dims)} axes", hint=BROKEN_HINT)
    for dim in dims:
        if dim.HasField("dim_value") and dim.dim_value == -1:
            dim.ClearField("dim_value")
        if not 0 <= dim.dim_value < LARGEST_SIZE:
            raise InputError(
                f"value {info.name!r} has a dimension of {dim.dim_value}", hint=BROKEN_HINT
            )


def _check_versions(model: onnx.ModelProto) -> None:
    known = onnx.defs.onnx_opset_version()
    if not model.HasField("graph") or not model.ir_version:
        raise InputError(
            "the file holds no graph; it is not a complete ONNX model", hint=BROKEN_HINT
        )
    if model.ir_version > onnx.IR_VERSION:
        raise InputError(
            f"ONNX IR version {model.ir_version} is newer than this mpqc knows "
            f"({onnx.IR_VERSION})",
            hint="update the onnx package, or export with an older one",
        )
    if not model.opset_import:
        raise InputError("the model imports no operator set", hint=BROKEN_HINT)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not 0 < entry.version <= known:
            raise InputError(
                f"opset {entry.version} is newer than this mpqc knows ({known})",
                hint="update the onnx package, or export with an older opset",
            )


def check_model(model: onnx.ModelProto, files: TensorFiles) -> None:
    """Refuses everything in a parsed file that later code should not have to think about.

    Raises:
        InputError: Names the first thing that is wrong.
    """
    _check_versions(model)
    check_texts(model)
    for graph in nested(model.graph, *model.functions):
        _check_graph(graph)
    check_tensors(model, files)

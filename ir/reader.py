"""Reads an ONNX file that nobody vouches for."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from .errors import InputError
from .file_kinds import kind_of
from .node_checks import check_nodes
from .operands import all_graphs, operands
from .proto_checks import check_model, nested
from .tensor_files import Extent, TensorFiles, byte_size, mark_origin, tensor_of
from .units import VIEWS, stored_tensor
from .verifier import problems

_LARGEST_FILE = (1 << 31) - 1
_LONGEST_LINE = 500
_DROPPED_METADATA = (
    "ort_config",
)  # would change the session options of whoever loads the result


def _open(path: Path) -> int:
    """Opens a regular file, or says why not."""
    try:
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        cause = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot open {path}: {cause}") from error
    mode = os.fstat(opened).st_mode
    if stat.S_ISREG(mode):
        return opened
    os.close(opened)
    what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise InputError(f"{path} is {what}", hint="give the .onnx file itself")


def _parse(path: Path) -> onnx.ModelProto:
    opened = _open(path)
    try:
        size = os.fstat(opened).st_size
        if size == 0:
            raise InputError(
                f"{path} is empty", hint="the download or export was interrupted; repeat it"
            )
        head = os.read(opened, 4096)
        if (kind := kind_of(head)) is not None:
            raise InputError(f"{path} is {kind.name}", hint=kind.hint)
        if size > _LARGEST_FILE:
            raise InputError(
                f"{path} has {size} bytes; an ONNX file ends at 2 GiB",
                hint="save it with external data",
            )
        with mmap.mmap(opened, 0, access=mmap.ACCESS_READ) as mapped:
            return _decode(path, bytes(mapped) if size < 1 << 20 else mapped)
    finally:
        os.close(opened)


def _decode(path: Path, data: bytes | mmap.mmap) -> onnx.ModelProto:
    model = onnx.ModelProto()
    view = memoryview(data)
    try:
        model.ParseFromString(view)
    except (DecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a complete ONNX model: truncated, nested too deep or another kind",
            hint="fetch or export the file again",
        ) from error
    finally:
        view.release()
    return model


def _drop_devices(proto: onnx.ModelProto) -> None:
    """Removes the plan of which device runs what: the result runs on the target."""
    proto.ClearField("configuration")
    for graph in nested(proto.graph, *proto.functions):
        for node in graph.node:
            node.ClearField("device_configurations")


def _deserialize(path: Path, proto: onnx.ModelProto) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except Exception as error:  # onnx-ir raises many kinds for malformed graphs
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # type: ignore[assignment]
        raise InputError(_line(f"{path} is not a valid ONNX model: {cause}")) from error


def _line(text: str) -> str:
    """Returns ``text`` as one line that can be read, however long the names in it are."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 4] + " ..."


def _tensor(tensor: ir.ExternalTensor, files: TensorFiles) -> ir.TensorProtocol:
    """Returns ``tensor`` over our own checked mapping; proto_checks has seen its extent."""
    length = byte_size(tensor.dtype, tensor.size)
    extent = Extent(str(tensor.location), tensor.offset or 0, length)
    raw = files.bytes_of(tensor.name, extent)
    mapped = tensor_of(raw, tensor.dtype, tensor.shape, tensor.name)
    mark_origin(mapped, files.origin(extent))
    return mapped


def _all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from all_graphs(model.graph)
    for function in model.functions.values():
        yield from all_graphs(function.graph)


def _map_tensors(model: ir.Model, files: TensorFiles) -> None:
    for graph in _all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _tensor(value.const_value, files)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(
                        name, _tensor(attribute.value, files)
                    )
                elif attribute.type == ir.AttributeType.TENSORS:
                    tensors = [
                        _tensor(one, files) if isinstance(one, ir.ExternalTensor) else one
                        for one in attribute.as_tensors()
                    ]
                    node.attributes[name] = ir.AttrTensors(name, tensors)


def _is_sorted(graph: ir.Graph) -> bool:
    for one in all_graphs(graph):
        made: set[ir.Node] = set()
        for node in one:
            producers = (value.producer() for value in operands(node))
            if any(p is not None and p.graph is one and p not in made for p in producers):
                return False
            made.add(node)
    return True


def _sort(path: Path, model: ir.Model) -> None:
    """Puts nodes into execution order; some writers do not."""
    if all(map(_is_sorted, [model.graph, *(one.graph for one in model.functions.values())])):
        return
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        raise InputError(f"{path} is not a valid ONNX model: its graph has a cycle") from error


def _check_transposes(model: ir.Model) -> None:
    """Refuses to turn a constant by axes that it has not, also behind views.

    Raises:
        InputError: Names the node.
    """
    ranks: dict[ir.Value | None, int] = {}
    for node in (node for graph in _all_graphs(model) for node in graph):
        if node.op_type not in VIEWS or node.domain not in ("", "ai.onnx"):
            continue
        source = node.inputs[0]
        tensor = stored_tensor(source) if source is not None else None
        rank = len(tensor.shape) if tensor is not None else ranks.get(source)
        if rank is None:
            continue
        ranks[node.outputs[0]] = rank
        turned = len(node.attributes.get_ints("perm", range(rank)))
        if node.op_type == "Transpose" and turned != rank:
            raise InputError(
                f"Transpose {node.name!r} permutes {turned} axes of a constant with {rank}"
            )


def read_model(path: Path, *, weights_of: Path | None = None) -> ir.Model:
    """Reads an ONNX file; external weights are mapped, not loaded.

    Files outside the model's folder are never opened, whatever the model says.

    Args:
        path: The file.
        weights_of: Another model, in whose folder weights are looked for that are not in the
            folder of ``path``: what ``write_model`` was given.

    Raises:
        InputError: The file is missing, of another kind, broken or unsafe.
    """
    path = Path(os.path.abspath(path))
    proto = _parse(path)
    files = TensorFiles(path, weights_of)
    try:
        check_model(proto, files)
        check_nodes(proto)
    except InputError as error:
        raise InputError(_line(f"{path.name}: {error.message}"), hint=error.hint) from error
    _drop_devices(proto)
    model = _deserialize(path, proto)
    _map_tensors(model, files)
    _sort(path, model)
    _check_transposes(model)
    for problem in problems(model):
        raise InputError(_line(f"{path} is not a valid ONNX model: {problem}"))
    for key in _DROPPED_METADATA:
        model.metadata_props.pop(key, None)
    return model

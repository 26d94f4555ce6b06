"""Writes models: ``model.onnx`` with its weights beside it, deterministic to the byte.

Small tensors stay inside the protobuf. With a shared folder, every tensor is a file named by
its content, so that a series of dumps holds each weight once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from .atomic_file import replacing
from .exporter_traces import forget_traces
from .machine_errors import machine_errors
from .operands import all_graphs
from .tensor_files import byte_size, origin_of, stored_bytes

SMALLEST_EXTERNAL = 1024
_ALIGNMENT = 64
_CHUNK = 1 << 24

Place = Callable[[ir.TensorProtocol], ir.ExternalTensor]


def _is_external(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING:
        return False
    return byte_size(tensor.dtype, tensor.size) >= SMALLEST_EXTERNAL


def _write_bytes(file: BinaryIO, tensor: ir.TensorProtocol) -> int:
    view = stored_bytes(tensor)
    for at in range(0, len(view), _CHUNK):
        file.write(view[at : at + _CHUNK])
    return len(view)


def _entry(
    tensor: ir.TensorProtocol, location: str, offset: int, length: int
) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    name = str(tensor.name)
    return ir.ExternalTensor(location, offset, length, tensor.dtype, shape=shape, name=name)


class _OneFile:
    """Appends tensors to one file, aligned, and a tensor that several values share once."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file = file
        self._location = location
        self._end = 0
        self._written: dict[int, tuple[ir.TensorProtocol, int, int]] = {}

    def __call__(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        if id(tensor) not in self._written:
            padding = -self._end % _ALIGNMENT
            self._file.write(bytes(padding))
            offset = self._end + padding
            length = _write_bytes(self._file, tensor)
            self._end = offset + length
            # The tensor is kept so that its id is not given to another one meanwhile.
            self._written[id(tensor)] = (tensor, offset, length)
        _, offset, length = self._written[id(tensor)]
        return _entry(tensor, self._location, offset, length)


class SharedTensors:
    """A folder of tensors named by their SHA-256, beside the dumps that refer to it."""

    def __init__(self, folder: Path, beside: Path) -> None:
        self._folder = folder
        self._prefix = folder.relative_to(beside).as_posix()
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        view = stored_bytes(tensor)
        name = hashlib.sha256(view).hexdigest() + ".bin"
        path = self._folder / name
        if not path.exists() or path.stat().st_size != len(view):
            with replacing(path) as file:
                _write_bytes(file, tensor)
        return _entry(tensor, f"{self._prefix}/{name}", 0, len(view))


class _LeftInPlace:
    """Refers to the bytes beside a model where they were read there, and stores others."""

    def __init__(self, model: Path, others: Place) -> None:
        self._model, self._others = model, others

    def __call__(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        origin = origin_of(tensor)
        if origin is None or origin.model != self._model:
            return self._others(tensor)
        extent = origin.extent
        return _entry(tensor, extent.location, extent.offset, extent.length)


Restore = Callable[[], None]


def _move_initializers(graph: ir.Graph, place: Place, undo: list[Restore]) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not _is_external(tensor):
            continue

        def restore(value: ir.Value = value, tensor: ir.TensorProtocol = tensor) -> None:
            value.const_value = tensor

        entry = place(tensor)
        entry.name = str(value.name)
        undo.append(restore)
        value.const_value = entry


def _move_attributes(graph: ir.Graph, place: Place, undo: list[Restore]) -> None:
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                continue
            tensor = attribute.as_tensor()
            if not _is_external(tensor):
                continue

            def restore(
                node: ir.Node = node, name: str = name, attribute: ir.Attr = attribute
            ) -> None:
                node.attributes[name] = attribute

            undo.append(restore)
            node.attributes[name] = ir.AttrTensor(name, place(tensor))


@contextmanager
def _placed(model: ir.Model, place: Place) -> Iterator[None]:
    """While the block runs, large tensors of ``model`` are references to stored copies."""
    undo: list[Restore] = []
    try:
        for graph in [model.graph, *(one.graph for one in model.functions.values())]:
            for inner in all_graphs(graph):
                _move_initializers(inner, place, undo)
                _move_attributes(inner, place, undo)
        yield
    finally:
        for restore in undo:
            restore()


def _serialize(model: ir.Model) -> bytes:
    proto: onnx.ModelProto = ir.serde.serialize_model(model)
    forget_traces(proto)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def write_model(
    model: ir.Model,
    path: Path,
    *,
    shared: Path | None = None,
    weights_of: Path | None = None,
) -> None:
    """Writes ``model`` to ``path`` and its weights to ``path`` + ``.data``.

    The model is unchanged afterwards. If all tensors are small, no data file is written and an
    old one is removed.

    Args:
        model: The model.
        path: The ``.onnx`` file, replaced if it exists.
        shared: A folder beside or below that of ``path`` for content-addressed tensor files,
            instead of one data file.
        weights_of: With ``shared``: the file of a model whose tensors stay where they are, for
            ``read_model`` with the same ``weights_of``.

    Raises:
        MachineError: The disk is full or the place cannot be written.
    """
    path = Path(os.path.abspath(path))
    with machine_errors(path):
        if shared is not None:
            place: Place = SharedTensors(Path(os.path.abspath(shared)), path.parent)
            if weights_of is not None:
                place = _LeftInPlace(Path(os.path.abspath(weights_of)), place)
            with _placed(model, place), replacing(path) as file:
                file.write(_serialize(model))
            return
        data = path.with_name(path.name + ".data")
        with replacing(data) as weights, replacing(path) as file:
            with _placed(model, _OneFile(weights, data.name)):
                file.write(_serialize(model))
            empty = weights.tell() == 0
        if empty:
            data.unlink()


def write_references(model: ir.Model, path: Path) -> None:
    """Writes ``model`` to ``path`` with its external tensors where they are, beside ``path``.

    Raises:
        MachineError: The disk is full or the place cannot be written.
    """
    path = Path(os.path.abspath(path))
    with machine_errors(path), replacing(path) as file:
        file.write(_serialize(model))

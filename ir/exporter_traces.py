"""What exporters leave in a model about the machine that exported it.

torch writes on every node the Python stack that made it, with the paths of source files, and
the hierarchy of its classes. None of that is the model's, and a result is passed on. Metadata
under other keys stays, unless it is such a stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx

_EXPORTERS = ("pkg.torch.", "pkg.onnxscript.")
_OF_NODES = ("namespace",)  # the hierarchy of classes, as torch writes it on nodes
# A line of a Python stack, as tracebacks print it, and as torch's older exporter does.
_STACK = re.compile(r'^\s*File "[^"\n]*", line \d+|\S\.py\(\d+\): ', re.MULTILINE)


def forget_traces(model: onnx.ModelProto) -> None:
    """Removes metadata of exporters and stacks of Python from everything in ``model``."""
    for proto in _documented(model):
        doc = getattr(proto, "doc_string", "")
        if _STACK.search(doc):
            proto.ClearField("doc_string")
        extra = _OF_NODES if isinstance(proto, onnx.NodeProto) else ()
        entries = [one for one in proto.metadata_props if not _is_trace(one, extra)]
        if len(entries) < len(proto.metadata_props):
            del proto.metadata_props[:]
            proto.metadata_props.extend(entries)


def _is_trace(entry: onnx.StringStringEntryProto, extra: tuple[str, ...]) -> bool:
    is_exporters = entry.key.startswith(_EXPORTERS) or entry.key in extra
    return is_exporters or _STACK.search(entry.value) is not None


def _documented(model: onnx.ModelProto) -> Iterator[Any]:
    """Yields everything in the model that carries metadata, without recursion."""
    yield model
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop()
        yield body
        yield from body.value_info
        if isinstance(body, onnx.GraphProto):
            yield from (*body.input, *body.output, *body.initializer)
        for node in body.node:
            yield node
            for attribute in node.attribute:
                waiting += attribute.graphs
                if attribute.HasField("g"):
                    waiting.append(attribute.g)

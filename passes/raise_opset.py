"""The pass ``raise-opset``: the same graph in the words of a newer standard."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir import InputError, MpqcError, UsageError, all_nodes
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast, RaisedOpset

OLDEST_IR = {21: 10}  # the file format that an opset came with, where it matters
_NEWEST = 25
_DOMAIN = ("", "ai.onnx")
_REDEFINED = "GroupNormalization"  # scale and bias by channel instead of by group, from 21 on


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Convert a graph of an older opset of the standard to a newer one.

    INT4 and scales of blocks came with opset 21, which ``insert-qdq`` needs. onnxscript
    converts graphs from opset 18 on, ONNX's own converter older ones; operators of other
    domains stay as they are. A graph that neither can convert is refused.

    Attributes:
        version: The opset to reach.
    """

    name: ClassVar[str] = "raise-opset"
    promise: ClassVar[Promise] = Promise.SAME_FUNCTION
    version: int = 21

    def __post_init__(self) -> None:
        if not 7 <= self.version <= _NEWEST:
            raise UsageError(f"raise-opset knows opsets 7 to {_NEWEST}, not {self.version}")

    def forecast(self, before: Forecast) -> Forecast:
        return super().forecast(before).telling(RaisedOpset(self.version))

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Converts ``model`` in place; returns whether it was older."""
        old = model.opset_imports.get("", 1)
        if old >= self.version:
            return False
        notes = {node.name: dict(node.metadata_props) for node in all_nodes(model.graph)}
        _convert(model, old, self.version)
        for node in all_nodes(model.graph):  # the older converter drops them
            node.metadata_props.update(notes.get(node.name, {}))
        model.ir_version = max(model.ir_version, OLDEST_IR.get(self.version, 0))
        _name_nodes(model)
        context.report[self.name] = {"from": old, "to": self.version}
        return True


def _convert(model: ir.Model, old: int, new: int) -> None:
    """Converts, or says why that cannot be done."""
    from onnxscript.version_converter import ConvertVersionPass

    refused = f"opset {old} cannot be raised to {new}"
    for node in all_nodes(model.graph):
        if node.op_type == _REDEFINED and node.domain in _DOMAIN and not _has_channels(node):
            raise InputError(
                f"{refused}: {_REDEFINED} {node.name!r} has a new meaning there, which depends"
                " on a number of channels that the graph does not tell"
            )
    said = _Warnings()
    log = logging.getLogger("onnxscript.version_converter")
    log.addHandler(said)
    try:
        converted = ConvertVersionPass(new, fallback=True)(model).model
    except MpqcError:
        raise
    except Exception as error:  # the converters' errors have nothing in common
        raise InputError(f"{refused}: {_line(error)}") from error
    finally:
        log.removeHandler(said)
    if converted is not model or model.opset_imports.get("") != new:
        raise InputError(f"{refused}{said.cause}", hint="export the model with a newer opset")


class _Warnings(logging.Handler):
    """Keeps what a converter says instead of raising it.

    Attributes:
        cause: The last cause that it named, in one line.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cause = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.cause = f": {_line(record.exc_info[1])}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _has_channels(node: ir.Node) -> bool:
    """Tells whether shapes say how many channels a GroupNormalization has."""
    x, scale = node.inputs[0], node.inputs[1]
    if x is None or scale is None or x.shape is None or scale.shape is None:
        return False
    return len(x.shape) > 1 and isinstance(x.shape[1], int) and scale.shape.is_static()


def _name_nodes(model: ir.Model) -> None:
    """Names the nodes that the converter added, as ``normalize`` named all others."""
    nodes = list(all_nodes(model.graph))
    taken = {node.name for node in nodes}
    for at, node in enumerate(one for one in nodes if not one.name):
        name = f"{node.op_type}_raised_{at}"
        node.name = name if name not in taken else f"{name}_again"

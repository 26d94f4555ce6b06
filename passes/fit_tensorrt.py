"""The pass ``fit-tensorrt``: the last edits that TensorRT's builder asks for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import onnx_ir as ir

from ..ir import InputError, MachineError, all_nodes
from ..ir.skeleton import restore_constants, skeleton
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast

_STANDARD = ("", "ai.onnx")
_SURGEON = "onnx_graphsurgeon"


@dataclass(frozen=True)
class FitTensorrt(Pass):
    """Give every reader of codes its own DequantizeLinear, and write plain operators.

        %w = DequantizeLinear(@codes, @scales)        %w1 = DequantizeLinear(@codes, @scales)
        %a = MatMul(%x, %w)                       =>  %a  = MatMul(%x, %w1)
        %b = MatMul(%y, %w)                           %w2 = DequantizeLinear(@codes, @scales)
                                                      %b  = MatMul(%y, %w2)

    The builder fuses a DequantizeLinear with the layer that reads it, and computes one that
    several layers read by itself. A Sum of two becomes an Add, whose form with a product it
    recognises. A model with operators of other domains is refused: TensorRT imports none.
    """

    name: ClassVar[str] = "fit-tensorrt"
    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses operators that TensorRT does not import, and a missing package."""
        if find_spec(_SURGEON) is None:
            raise MachineError(
                "writing graphs for TensorRT needs onnx-graphsurgeon",
                hint="pip install 'mpqc[tensorrt]'",
            )
        _check_operators(model)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        self.preflight(model, context, Forecast())
        import onnx_graphsurgeon as surgeon
        from onnx_graphsurgeon.logger import G_LOGGER

        G_LOGGER.severity = G_LOGGER.ERROR  # it warns of types that it keeps all the same
        constants = dict(model.graph.initializers)
        _name_nodes(model)
        nodes = {node.name: dict(node.metadata_props) for node in all_nodes(model.graph)}
        graph = surgeon.import_onnx(ir.to_proto(skeleton(model)))
        split = _split_dequantizers(graph)
        renamed = _plain_additions(graph)
        if not split and not renamed:
            context.report[self.name] = {"split": 0, "additions": 0}
            return False
        graph.toposort()
        edited = ir.from_proto(surgeon.export_onnx(graph))
        restore_constants(edited, constants)
        for node in all_nodes(edited.graph):
            node.metadata_props.update(nodes.get(split.get(str(node.name), node.name), {}))
        _take_graph(model, edited)
        context.report[self.name] = {"split": len(split), "additions": renamed}
        return True


def _check_operators(model: ir.Model) -> None:
    foreign = [node for node in all_nodes(model.graph) if node.domain not in _STANDARD]
    if foreign:
        node = foreign[0]
        raise InputError(
            f"TensorRT has no operator {node.op_type} of the domain {node.domain!r}:"
            f" {node.name!r} and {len(foreign) - 1} more",
            hint="export it in standard operators: mpqc export DIR --operators standard",
        )


def _name_nodes(model: ir.Model) -> None:
    """Names nodes without a name, by which they are found again."""
    taken = {str(node.name) for node in all_nodes(model.graph)}
    for at, node in enumerate(all_nodes(model.graph)):
        if not node.name:
            node.name = _free(f"{node.op_type}_{at}", taken)


def _split_dequantizers(graph: Any) -> dict[str, str]:
    """Gives all readers of a DequantizeLinear but the first one of their own.

    Returns:
        By name of a new node, that of the old one.
    """
    import onnx_graphsurgeon as surgeon

    made = {}
    taken = {node.name for node in graph.nodes} | set(graph.tensors())
    for node in [one for one in graph.nodes if one.op == "DequantizeLinear"]:
        (result,) = node.outputs
        if result in graph.outputs:
            continue
        places = [
            (reader, at)
            for reader in dict.fromkeys(map(_Same, result.outputs))
            for at, value in enumerate(reader.node.inputs)
            if value is result
        ]
        for number, (reader, at) in enumerate(places[1:], start=1):
            name = _free(f"{node.name}/{number}", taken)
            copy = surgeon.Variable(name, result.dtype, result.shape)
            reader.node.inputs[at] = copy
            inputs, attributes = list(node.inputs), dict(node.attrs)
            graph.nodes.append(
                surgeon.Node("DequantizeLinear", name, attributes, inputs, [copy])
            )
            made[name] = str(node.name)
    return made


class _Same:
    """A node that equals itself alone; the library's equal all that look the same."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.node is other.node

    def __hash__(self) -> int:
        return id(self.node)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _plain_additions(graph: Any) -> int:
    """Makes an Add of every Sum of two; returns how many there were."""
    sums = [node for node in graph.nodes if node.op == "Sum" and len(node.inputs) == 2]
    for node in sums:
        node.op = "Add"
    return len(sums)


def _take_graph(model: ir.Model, edited: ir.Model) -> None:
    """Lets ``model`` have the edited graph, and keep what it knows of itself."""
    edited.graph.metadata_props.update(model.graph.metadata_props)
    edited.graph.name, edited.graph.doc_string = model.graph.name, model.graph.doc_string
    edited.graph.opset_imports.update(model.graph.opset_imports)
    model.graph = edited.graph

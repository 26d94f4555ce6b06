"""normalize: one way to write what exporters write in many, without touching a number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from ...ir import all_graphs, all_nodes, find_units, inline_functions
from ..engine.pipeline.base import Pass, PassContext, Promise
from .constant_weights import fold_weights
from .tied_weights import tie_weights

_LIFTED = 16  # constants with fewer entries stay where they are read
_SEPARATE_WEIGHTS = 4  # the IR version from which initializers need not be inputs as well


@dataclass(frozen=True)
class Normalize(Pass):
    """Bring weights into the form that ``find_units`` expects.

    1. Functions are inlined.
    2. Weights that are also listed as inputs become plain initializers.
    3. Constant nodes with a tensor of 16 entries or more become initializers, and those of
       branches and loops become the main graph's.
    4. Weights that are put together from constants (by Concat, Slice, Mul and the like) are
       computed:

           %w = Concat(@a, @b)    =>    @w
    5. Identity nodes are removed, unless they name an output of a graph.
    6. Nodes and initializers without readers are removed.
    7. Equal weights are merged into one; a weight that is another's transpose becomes a view:

           %y = MatMul(%x, @b)    =>    %t = Transpose(@a)    if @b equals @a transposed
                                        %y = MatMul(%x, %t)

    8. Nodes without a name get one.

    Inputs of the model keep their names, and all numbers stay the same, bit for bit.
    """

    name: ClassVar[str] = "normalize"
    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def run(self, model: ir.Model, context: PassContext) -> bool:
        changed = inline_functions(model)
        changed |= _separate_weights(model)
        lift = common.LiftConstantsToInitializersPass(size_limit=_LIFTED)
        changed |= lift(model).modified
        _part_names(model)
        changed |= common.LiftSubgraphInitializersToMainGraphPass()(model).modified
        changed |= fold_weights(model)
        changed |= _drop_identities(model)
        changed |= common.RemoveUnusedNodesPass()(model).modified
        changed |= common.RemoveUnusedOpsetsPass()(model).modified
        changed |= tie_weights(model)
        return _name_nodes(model) | changed


def _separate_weights(model: ir.Model) -> bool:
    """Takes weights out of the inputs, where old files list them as defaults."""
    inputs = model.graph.inputs
    if model.ir_version < _SEPARATE_WEIGHTS:
        weights = set(model.graph.initializers.values())
        model.ir_version = _SEPARATE_WEIGHTS
    else:
        weights = {unit.weight for unit in find_units(model)}
    kept = [value for value in inputs if value not in weights]
    changed = len(kept) < len(inputs)
    if changed:
        inputs.clear()
        inputs.extend(kept)
    return changed


def _part_names(model: ir.Model) -> None:
    """Renames initializers of inner graphs whose name another graph uses too.

    Two branches may, as long as neither name is in the graph around both.
    """
    graphs = list(all_graphs(model.graph))
    used = Counter(
        value.name
        for graph in graphs
        for values in (graph.inputs, graph.initializers.values(), *(n.outputs for n in graph))
        for value in values
    )
    for graph in graphs[1:]:
        for name, value in list(graph.initializers.items()):
            if used[name] < 2 or value.is_graph_input():
                continue
            at = 1
            while used[f"{name}_{at}"]:
                at += 1
            del graph.initializers[name]
            value.name = f"{name}_{at}"
            used[value.name] += 1
            graph.register_initializer(value)


def _drop_identities(model: ir.Model) -> bool:
    """Lets readers of an Identity read its input; an Identity that makes an output stays."""
    changed = False
    for node in list(all_nodes(model.graph)):
        if node.op_type != "Identity" or node.domain or len(node.inputs) != 1:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or result.is_graph_output() or node.graph is None:
            continue
        source.type = source.type or result.type
        source.shape = source.shape or result.shape
        result.replace_all_uses_with(source)
        node.graph.remove(node, safe=True)
        changed = True
    return changed


def _name_nodes(model: ir.Model) -> bool:
    """Names nodes after their operator and their place among nodes with the same operator."""
    nodes = list(all_nodes(model.graph))
    taken = {node.name for node in nodes}
    counts: dict[str, int] = {}
    for node in (one for one in nodes if not one.name):
        while not node.name or node.name in taken:
            counts[node.op_type] = at = counts.get(node.op_type, -1) + 1
            node.name = f"{node.op_type}_{at}"
        taken.add(node.name)
    return bool(counts)

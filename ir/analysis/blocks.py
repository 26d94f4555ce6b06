"""Blocks: segments of the graph between cut points of the activation stream.

The stream is everything that follows from a unit through float values; masks, shapes and
positions are not part of it. Along the stream's longest chain of units, a node that every
path crosses (a dominator of the end) is a cut point, and a block ends after it. Branches that
enter the chain from the side belong to the block that reads them first, branches that leave it
(a KV cache, a second head) to the block that feeds them. Where dominators are too sparse, as
in a decoder that reads an encoder's output in every layer, the same cut is made again inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from ..annotation import note_of
from ..errors import InternalError
from ..operands import operands, read_by_subgraphs
from ..unit_search import find_units
from ..units import FLOAT_TYPES
from ..vocabulary import BlockId

LARGEST_UNCUT = 16  # unit uses up to which a segment is left as it is
MOST_BLOCKS = 512  # beyond this, neighbours are merged
_DEEPEST = 4
_NOT_FLOAT = {
    "ArgMax",
    "ArgMin",
    "Equal",
    "Greater",
    "Less",
    "NonZero",
    "Not",
    "Shape",
    "Size",
}


@dataclass(frozen=True)
class Block:
    """A segment of the graph.

    Attributes:
        index: Place in the execution order.
        nodes: Its nodes in execution order.
        inputs: Values it reads from graph inputs and earlier blocks, in order of first use.
        outputs: Values it makes that later blocks or the graph outputs need, in that order.
    """

    index: int
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


@dataclass(frozen=True)
class _Stream:
    """The main graph as numbers: node ``i`` is the ``i``-th in execution order.

    Attributes:
        needs: For every node, the nodes it needs in any way.
        before: For every node, the stream nodes whose float values it reads.
        after: The reverse of ``before``.
        load: For every node, how many units it reads.
        members: The stream nodes, ascending.
    """

    needs: list[list[int]]
    before: list[list[int]]
    after: list[list[int]]
    load: list[int]
    members: list[int]


def is_float(value: ir.Value) -> bool:
    """Tells whether ``value`` holds floats, by its type or else by its producer."""
    if value.dtype is not None:
        return value.dtype in FLOAT_TYPES
    producer = value.producer()
    return producer is None or producer.op_type not in _NOT_FLOAT


def _load(model: ir.Model, order: dict[ir.Node, int]) -> list[int]:
    load = [0] * len(order)
    for unit in find_units(model):
        for node in {use.node for use in unit.uses} or {unit.anchor}:
            if node in order:
                load[order[node]] += 1
    return load


def _stream(model: ir.Model) -> _Stream:
    nodes = list(model.graph)
    order = {node: at for at, node in enumerate(nodes)}
    load = _load(model, order)
    needs: list[list[int]] = []
    before: list[list[int]] = []
    after: list[list[int]] = [[] for _ in nodes]
    members: list[int] = []
    inside = [False] * len(nodes)
    for at, node in enumerate(nodes):
        made = [(v, order[p]) for v in operands(node) if (p := v.producer()) in order and p]
        needs.append(sorted({index for _, index in made}))
        floats = sorted({index for value, index in made if inside[index] and is_float(value)})
        inside[at] = bool(floats or load[at])
        before.append(floats)
        for index in floats:
            after[index].append(at)
        if inside[at]:
            members.append(at)
    return _Stream(needs, before, after, load, members)


def _longest_chain(stream: _Stream, part: Sequence[int]) -> tuple[int, int]:
    """Returns both ends of the path that reads most units (and, of those, has most nodes)."""
    inside = set(part)
    best: dict[int, tuple[int, int]] = {}
    first: dict[int, int] = {}
    for at in part:
        length, start = (0, 0), at
        for earlier in stream.before[at]:
            if earlier in inside and best[earlier] > length:
                length, start = best[earlier], first[earlier]
        best[at] = (length[0] + stream.load[at], length[1] + 1)
        first[at] = start
    last = max(part, key=lambda at: (best[at], -at))
    return first[last], last


def _reach(steps: list[list[int]], starts: Iterable[int], inside: set[int]) -> set[int]:
    seen = set(starts)
    todo = list(seen)
    while todo:
        for at in steps[todo.pop()]:
            if at in inside and at not in seen:
                seen.add(at)
                todo.append(at)
    return seen


def _cut_chain(stream: _Stream, first: int, last: int, inside: set[int]) -> dict[int, int]:
    """Numbers the nodes on paths from ``first`` to ``last`` by the cut points before them."""
    chain = _reach(stream.after, [first], inside) & _reach(stream.before, [last], inside)
    graph = nx.DiGraph()
    graph.add_nodes_from(chain)
    graph.add_edges_from((a, b) for a in chain for b in stream.after[a] if b in chain)
    parent = nx.immediate_dominators(graph, first)
    cuts = {last}
    at = last
    while at != first:
        at = parent[at]
        cuts.add(at)
    segment = {first: 0}
    for at in sorted(chain - {first}):
        segment[at] = segment[parent[at]] + (parent[at] in cuts)
    return segment


def _place_branches(
    stream: _Stream, part: Sequence[int], segment: dict[int, int], inside: set[int]
) -> None:
    """Gives nodes beside the chain the segment of their first reader, else of their maker."""
    entering = _reach(stream.before, segment, inside) - segment.keys()
    for at in sorted(entering, reverse=True):
        segment[at] = min(segment[b] for b in stream.after[at] if b in segment)
    for at in part:
        if at not in segment:
            segment[at] = max(
                (segment[a] for a in stream.before[at] if a in inside), default=0
            )


def _split(stream: _Stream, part: list[int], depth: int = 0) -> list[list[int]]:
    """Cuts ``part`` (ascending) into consecutive segments."""
    total = sum(stream.load[at] for at in part)
    if depth == _DEEPEST or (depth and total <= LARGEST_UNCUT) or not part:
        return [part]
    inside = set(part)
    segment = _cut_chain(stream, *_longest_chain(stream, part), inside)
    _place_branches(stream, part, segment, inside)
    segments: list[list[int]] = [[] for _ in range(max(segment.values()) + 1)]
    for at in part:
        segments[segment[at]].append(at)
    pieces = [piece for one in segments for piece in _split(stream, one, depth + 1)]
    largest = max(sum(stream.load[at] for at in piece) for piece in pieces)
    return pieces if not depth or largest * 4 <= total * 3 else [part]


def _merge(stream: _Stream, segments: list[list[int]]) -> list[list[int]]:
    """Joins neighbours until every segment reads a unit and there are not too many."""
    total = sum(stream.load)
    least = max(1, -(-total // MOST_BLOCKS))
    merged: list[list[int]] = []
    open_segment: list[int] = []
    for segment in segments:
        open_segment += segment
        if sum(stream.load[at] for at in open_segment) >= least:
            merged.append(open_segment)
            open_segment = []
    if open_segment and merged:
        merged[-1] += open_segment
    elif open_segment:
        merged.append(open_segment)
    return merged


def partition(model: ir.Model) -> dict[ir.Node, int]:
    """Gives every node of the main graph the index of its block, in execution order.

    Every block reads a unit, if there are any. What depends on no unit is in block 0, but for
    the views of weights: they stand with their first reader, whose weight they are.
    """
    stream = _stream(model)
    index = [0] * len(stream.load)
    for number, segment in enumerate(_merge(stream, _split(stream, stream.members))):
        for at in segment:
            index[at] = number
    for at, needs in enumerate(stream.needs):
        # Shapes read from the stream can tie nodes together that float values do not.
        index[at] = max([index[at], *(index[need] for need in needs)])
    _move_views(model, index)
    dense = {number: at for at, number in enumerate(sorted(set(index)))}
    return {node: dense[index[at]] for at, node in enumerate(model.graph)}


def _move_views(model: ir.Model, index: list[int]) -> None:
    nodes = list(model.graph)
    order = {node: at for at, node in enumerate(nodes)}
    views = (view for unit in find_units(model) for view in unit.views if view in order)
    for at in sorted((order[view] for view in views), reverse=True):
        node = nodes[at]
        readers = [
            order[usage.node] for usage in node.outputs[0].uses() if usage.node in order
        ]
        index[at] = min((index[one] for one in readers), default=index[at])


def _members(model: ir.Model) -> dict[int, list[ir.Node]]:
    members: dict[int, list[ir.Node]] = {}
    for node in model.graph:
        note = note_of(node, BlockId)
        if note is None:
            raise InternalError(f"{node.op_type} {node.name!r} carries no #{BlockId.key}")
        members.setdefault(note.index, []).append(node)
    return members


def _inputs(nodes: Sequence[ir.Node]) -> tuple[ir.Value, ...]:
    own = set(nodes)
    found: dict[ir.Value, None] = {}
    for node in nodes:
        for value in operands(node):
            if value.producer() not in own and not value.is_initializer():
                found[value] = None
    return tuple(found)


def _outputs(
    nodes: Sequence[ir.Node], captured: dict[ir.Value, list[ir.Node]]
) -> tuple[ir.Value, ...]:
    own = set(nodes)

    def is_needed(value: ir.Value) -> bool:
        readers = [usage.node for usage in value.uses() if usage.node.graph is nodes[0].graph]
        readers += captured.get(value, [])
        return value.is_graph_output() or any(reader not in own for reader in readers)

    return tuple(value for node in nodes for value in node.outputs if is_needed(value))


def blocks_of(model: ir.Model) -> list[Block]:
    """Returns the blocks that the ``#block`` notes describe, in execution order.

    Raises:
        InternalError: A node carries no note, or depends on a later block.
    """
    members = _members(model)
    place = {node: index for index, nodes in members.items() for node in nodes}
    for node, index in place.items():
        for value in operands(node):
            producer = value.producer()
            if producer is not None and place.get(producer, index) > index:
                raise InternalError(
                    f"{node.op_type} {node.name!r} of block {index} depends on "
                    f"{producer.op_type} {producer.name!r} of block {place[producer]}"
                )
    captured = read_by_subgraphs(model.graph)
    return [
        Block(index, tuple(nodes), _inputs(nodes), _outputs(nodes, captured))
        for index, nodes in sorted(members.items())
    ]

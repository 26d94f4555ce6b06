"""Sites: activations whose columns may be divided by constants, and everything involved.

Dividing the columns of ``x`` by ``f`` and multiplying the weights that read them changes no
product: ``(x / f) (diag(f) W) = x W``. It costs nothing at run time where what makes ``x`` can
take ``1 / f``: the weight of a norm, the output channels of a product, and their biases,

    (gate(x) * (x U))[j] / f[j]  =  (gate(x) * (x (U / f)))[j]
    relu(x A + a)[j] / f[j]      =  relu((x A + a)[j] / f[j])         for f > 0

A search starts at what one product multiplies, walks back to those that can take the scale,
and forth to everybody else who would see it. All that it reaches must agree: then it is a
*site*, with one factor for each *class* of channels (usually for each channel; the heads that
share a value head share their factors).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...ir import Unit, find_units
from ...ir.units import stored_tensor
from .labels import NONE, Labels, stripped
from .passage import Refusal, back, forth, label_of, scaled_constants
from .shapes import dims_of


@dataclass(frozen=True)
class Part:
    """An axis of a stored weight, or a constant, that takes part in a site.

    Attributes:
        unit: The unit, for an axis of its matrix; None for a constant.
        node: Who reads the constant.
        index: As which of its inputs.
        classes: The class of each entry, -1 where it stays as it is.
    """

    unit: Unit | None
    node: ir.Node
    index: int
    classes: np.ndarray


@dataclass(frozen=True)
class Site:
    """Channels that may take a scale, and everything that has to know it.

    Attributes:
        activations: The inputs of the consumers, each with the class of each column.
        consumers: Units whose columns are multiplied by the factors.
        producers: Units whose rows are divided by them.
        constants: Initializers that are divided by them.
        classes: Number of factors.
    """

    activations: tuple[tuple[ir.Value, np.ndarray], ...]
    consumers: tuple[Part, ...]
    producers: tuple[Part, ...]
    constants: tuple[Part, ...]
    classes: int

    @property
    def name(self) -> str:
        """Name of the site: that of the activation that its first consumer multiplies."""
        return str(self.activations[0][0].name)


@dataclass(frozen=True)
class Closed:
    """An activation whose columns cannot be scaled for free.

    Attributes:
        activation: The activation.
        units: The units that multiply it.
        why: What stands in the way.
    """

    activation: ir.Value
    units: tuple[Unit, ...]
    why: str


def find_sites(model: ir.Model, *, cache: bool = False) -> tuple[list[Site], list[Closed]]:
    """Finds where column scales may enter, and why not elsewhere.

    Args:
        model: The graph.
        cache: Let scales reach what the model hands out as its key-value cache. Only right if
            callers do nothing with a cache but feed it back.
    """
    read = {use.node: u for u in find_units(model) for use in u.uses if use.kind == "product"}
    sites: list[Site] = []
    closed: list[Closed] = []
    seen: set[ir.Value] = set()
    for node in [one for one in model.graph if one in read]:
        activation = node.inputs[0]
        if activation is None or activation in seen or read[node].reason:
            continue
        search = _Search(model.graph, read, cache)
        try:
            site = search.site(activation)
            seen.update(value for value, _ in site.activations)
            sites.append(site)
        except Refusal as refusal:
            seen.add(activation)
            found = [read[one.node] for one in activation.uses() if one.node in read]
            units = [unit for unit in found if not unit.reason]
            closed.append(Closed(activation, tuple(units), str(refusal)))
    return sites, closed


@dataclass
class _State:
    """The state of a search; copied before a step that may have to be undone.

    Attributes:
        labels: Which labels have to agree.
        values: The labels of every value that it has reached.
        columns: By unit: labels of its columns.
        rows: By unit: labels of its rows.
        constants: By reader and input: labels of a constant.
    """

    labels: Labels = field(default_factory=Labels)
    values: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[tuple[ir.Node, int], np.ndarray] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(
            self.labels.copy(),
            dict(self.values),
            dict(self.columns),
            dict(self.rows),
            dict(self.constants),
        )


class _Search:
    """Follows the labels of one activation through the graph."""

    def __init__(self, graph: ir.Graph, read: dict[ir.Node, Unit], cache: bool) -> None:
        self.graph, self.read, self.cache = graph, read, cache
        self.units = {unit.name: unit for unit in read.values()}
        self.state = _State()

    def site(self, activation: ir.Value) -> Site:
        """Returns the site of an activation, or raises a Refusal."""
        first = next(self.read[one.node] for one in activation.uses() if one.node in self.read)
        self.reach(activation, self.state.labels.fresh(first.shape[1]))
        state = self.state
        for name in state.columns:
            self._check_consumer(self.units[name])
        return _Closing(state, self).site()

    def reach(self, value: ir.Value, labels: np.ndarray) -> None:
        """Lets ``value`` be scaled as ``labels`` say, and so everything that depends on it."""
        state, labels = self.state, stripped(labels)
        if value in state.values:
            state.labels.join(state.values[value], labels)
            return
        if not np.any(state.labels.roots(labels)):
            return  # none of it may be scaled: nothing changes
        state.values[value] = labels
        if value.is_graph_output() and not self._is_cache(value):
            raise Refusal(f"{value.name!r} is an output of the model")
        self._go_back(value, labels)
        for usage in list(value.uses()):
            self._go_forth(usage.node, usage.idx, labels)

    def _is_cache(self, value: ir.Value) -> bool:
        """Tells whether ``value`` is the cache of an attention, and may be scaled."""
        node = value.producer()
        return self.cache and node is not None and node.op_type == "GroupQueryAttention"

    def _go_back(self, value: ir.Value, labels: np.ndarray) -> None:
        node = value.producer()
        if node is None:
            raise Refusal(f"{value.name!r} is given, not made")
        if node in self.read:
            self._produce(node, labels)
            return
        for at, wanted in scaled_constants(node, value, labels):
            self._take_constant(node, at, wanted)
        ways = back(node, value, labels, self.state.labels, self.cache)
        self._try(ways, node)

    def _try(self, ways: list[list[tuple[int, np.ndarray]]], node: ir.Node) -> None:
        """Takes the first way back on which everything agrees."""
        marked = [
            way for way in ways if any(node.inputs[at] in self.state.values for at, _ in way)
        ]
        why = None
        for way in marked or ways:
            kept = self.state.copy()
            try:
                self._take(way, node)
                return
            except Refusal as refusal:
                why, self.state = why or refusal, kept
        if why is not None:
            raise why

    def _take(self, way: Iterable[tuple[int, np.ndarray]], node: ir.Node) -> None:
        for at, labels in way:
            value = node.inputs[at]
            assert value is not None
            if stored_tensor(value) is not None:
                self._take_constant(node, at, labels)
                continue
            dims = dims_of(value)
            self.reach(value, labels if dims is None else self._narrow(labels, dims))

    def _narrow(self, labels: np.ndarray, dims: list[int | str | None]) -> np.ndarray:
        return self.state.labels.narrowed(labels, dims)

    def _take_constant(self, node: ir.Node, at: int, labels: np.ndarray) -> None:
        value = node.inputs[at]
        if value is None:
            return
        if stored_tensor(value) is None:
            raise Refusal(f"{label_of(node)} reads {value.name!r}, which is not a constant")
        if value.is_graph_input():
            raise Refusal(f"{value.name!r} can be set from outside")
        self.state.constants[(node, at)] = labels

    def _produce(self, node: ir.Node, labels: np.ndarray) -> None:
        """Lets the rows of a unit, and what a Gemm adds, take the scale."""
        unit = self.read[node]
        if unit.reason or len(unit.uses) > 1 or unit.refused:
            raise Refusal(f"{unit.name!r} is used more than once, or stays in float")
        if labels.ndim != 1 or len(labels) != unit.shape[0]:
            raise Refusal(f"channels of {unit.name!r} are told apart by more than their place")
        self.state.rows[unit.name] = labels
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            self._take([(2, labels)], node)

    def _go_forth(self, node: ir.Node, index: int, labels: np.ndarray) -> None:
        if node.graph is not self.graph:
            raise Refusal(f"{label_of(node)} is inside control flow")
        if node in self.read:
            self._consume(node, index, labels)
            return
        others = [
            at
            for at, value in enumerate(node.inputs)
            if at != index and value is not None and value in self.state.values
        ]
        for output, found in forth(node, index, labels, self.state.labels, others, self.cache):
            self.reach(output, found)

    def _consume(self, node: ir.Node, index: int, labels: np.ndarray) -> None:
        unit = self.read[node]
        if index == 2:  # what a Gemm adds: its product must grow alike
            self.reach(node.outputs[0], labels)
            return
        if index != 0 or labels.ndim != 1 or len(labels) != unit.shape[1]:
            raise Refusal(f"{label_of(node)} sums over more than the channels")
        known = self.state.columns.setdefault(unit.name, labels)
        self.state.labels.join(known, labels)

    def _check_consumer(self, unit: Unit) -> None:
        """Refuses a weight that multiplies something else too, or that cannot be changed."""
        products = [use for use in unit.uses if use.kind == "product"]
        apart = [use.node for use in products if use.activation not in self.state.values]
        if len(products) < len(unit.uses):
            raise Refusal(f"{unit.name!r} is looked up as well")
        if unit.reason:
            raise Refusal(f"{unit.name!r} stays in float: {unit.reason}")
        if unit.refused or apart:
            raise Refusal(f"{unit.name!r} multiplies other activations too")
        if unit.weight.is_graph_input() or unit.weight.is_graph_output():
            raise Refusal(f"{unit.name!r} can be seen from outside the model")


class _Closing:
    """Numbers the classes of a finished search."""

    def __init__(self, state: _State, search: _Search) -> None:
        self.state, self.search = state, search
        wanted = [state.labels.roots(one).reshape(-1) for one in state.columns.values()]
        roots = np.unique(np.concatenate(wanted))
        self.roots = roots[roots != NONE]
        if not len(self.roots):
            raise Refusal("its channels cannot be scaled one by one")

    def site(self) -> Site:
        state, units = self.state, self.search.units
        read = self.search.read
        multiplied = {node.inputs[0]: None for node in self.search.graph if node in read}
        return Site(
            tuple(
                (value, self._classes(state.values[value]))
                for value in multiplied
                if value in state.values
            ),
            tuple(self._unit(units[name], one, 1) for name, one in state.columns.items()),
            tuple(self._unit(units[name], one, 0) for name, one in state.rows.items()),
            tuple(
                Part(None, node, at, self._classes(one))
                for (node, at), one in state.constants.items()
            ),
            len(self.roots),
        )

    def _unit(self, unit: Unit, labels: np.ndarray, axis: int) -> Part:
        return Part(unit, unit.anchor, axis, self._classes(labels))

    def _classes(self, labels: np.ndarray) -> np.ndarray:
        roots = self.state.labels.roots(labels)
        found = np.searchsorted(self.roots, roots)
        found[found == len(self.roots)] = 0
        return np.where(self.roots[found] == roots, found, -1)

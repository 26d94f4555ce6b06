"""The core of an attention as a differentiable module, and which channels its heads use.

The core is everything between what the products of queries, keys and values make and what the
output product reads: biases, norms, rotations, repeated heads, scores, masks, softmax. Running
it as it stands in the graph makes everything below exact without knowing what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir
import torch

from ....ir import operands
from ....ir.analysis.attention.binding import Attention, NoMatchError, Operand
from ....ir.analysis.blocks import Block
from ..pipeline.base import Runner

Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Core:
    """The core of one attention.

    Attributes:
        attention: What it is the core of.
        module: Maps ``made`` and ``context`` to the operands and to ``mixed``.
        made: The outputs of the products; one value if they share a unit.
        context: What else the core reads: masks, positions, a cache.
    """

    attention: Attention
    module: torch.nn.Module
    made: tuple[ir.Value, ...]
    context: tuple[ir.Value, ...]

    @classmethod
    def lower(cls, attention: Attention, block: Block, runner: Runner) -> Core:
        """Lowers the core of an attention inside a block.

        Raises:
            NoMatchError: Parts of it are in other blocks, or do not run in torch.
        """
        made = tuple(dict.fromkeys(part.output for part in attention.projections[:3]))
        nodes = _between(made, attention.output.use.activation, block)
        refused = runner.unsupported(nodes)
        if refused:
            raise NoMatchError(f"it does not run in torch: {next(iter(refused.values()))}")
        inside = {value for node in nodes for value in node.outputs}
        read = dict.fromkeys(value for node in nodes for value in operands(node))
        context = tuple(
            value
            for value in read
            if value not in inside and value not in made and not value.is_initializer()
        )
        ends = [*(one.value for one in attention.operands), attention.output.use.activation]
        module = runner.segment(nodes, [*made, *context], ends)
        return cls(attention, module, made, context)

    @property
    def wanted(self) -> tuple[ir.Value, ...]:
        """Everything that a run of the core has to be given."""
        return (*self.made, *self.context)

    def run(
        self, values: Values, made: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Runs the core on other results of the products.

        Args:
            values: Every value of ``context`` by name.
            made: What stands in for ``made``.

        Returns:
            The operands, and heads next to one another: tokens x (heads * size).
        """
        context = [values[str(value.name)] for value in self.context]
        *parts, mixed = self.module.to(made[0].device)(*made, *context)
        return parts, mixed.reshape(-1, mixed.shape[-1])

    def given(self, values: Values) -> list[torch.Tensor]:
        """Returns the outputs of the products in a run of the graph."""
        return [values[str(value.name)] for value in self.made]

    def place(self, role: int) -> int:
        """Returns which entry of ``made`` holds queries (0), keys (1) or values (2)."""
        return self.made.index(self.attention.projections[role].output)


def _between(made: Sequence[ir.Value], mixed: ir.Value, block: Block) -> tuple[ir.Node, ...]:
    """Returns the nodes of ``block`` on the way from ``made`` to ``mixed``.

    Raises:
        NoMatchError: There is no way within the block.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(block.nodes)
    for node in block.nodes:
        for value in operands(node):
            if value.producer() in graph:
                graph.add_edge(value.producer(), node)
    products, end = [value.producer() for value in made], mixed.producer()
    if any(one not in graph for one in (*products, end)):
        raise NoMatchError("its parts lie in several blocks")
    after = set().union(*(nx.descendants(graph, one) for one in products))
    inside = after & ({end} | nx.ancestors(graph, end))
    return tuple(node for node in block.nodes if node in inside and node not in products)


@dataclass(frozen=True)
class Wiring:
    """Which channels of the products belong to which head.

    Attributes:
        queries: For each run of query heads that share channels: the channels.
        keys: The same for keys.
        values: Key and value heads x channels of a head: in the order in which the output
            weight reads them.
        group: For every query head the head of ``values`` that it reads.
    """

    queries: tuple[torch.Tensor, ...]
    keys: tuple[torch.Tensor, ...]
    values: torch.Tensor
    group: torch.Tensor


def wire(core: Core, values: Values) -> Wiring:
    """Finds the channels of each head by following gradients, which knows every reshape.

    Raises:
        NoMatchError: The heads are not where the attention was bound to have them.
    """
    attention = core.attention
    made = [one.detach().requires_grad_() for one in core.given(values)]
    parts, _ = core.run(values, made)
    sizes = (attention.head_size, attention.head_size, attention.value_size)
    heads = [
        _by_heads(operand, part, size)
        for operand, part, size in zip(attention.operands, parts, sizes, strict=True)
    ]
    touched = [
        [_touched(heads[role], h, made[core.place(role)]) for h in range(len(heads[role]))]
        for role in range(3)
    ]
    columns, group = _value_channels(heads[2], touched[2], made[core.place(2)])
    return Wiring(
        _runs(touched[0]),
        _runs(touched[1]),
        columns,
        _by_query(group, attention.operands[2], attention.heads).to(columns.device),
    )


def _touched(
    heads: torch.Tensor, head: int, made: torch.Tensor, channel: int | None = None
) -> torch.Tensor:
    """Returns which channels of ``made`` a head depends on (channels, bool)."""
    generator = torch.Generator().manual_seed(head)
    direction = torch.zeros_like(heads)
    random = torch.rand(heads.shape[1:], generator=generator, dtype=heads.dtype) + 0.5
    random = random.to(heads.device)
    if channel is None:
        direction[head] = random
    else:
        direction[head, :, channel] = random[:, channel]
    (found,) = torch.autograd.grad(heads, made, direction, retain_graph=True)
    return found.reshape(-1, found.shape[-1]).abs().sum(0) > 0


def _runs(touched: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns sets of channels: heads that share channels share a set."""
    runs: list[torch.Tensor] = []
    for one in touched:
        shared = [run for run in runs if bool((run & one).any())]
        runs = [run for run in runs if not bool((run & one).any())]
        runs.append(torch.stack([one, *shared]).any(0))
    return tuple(run.nonzero()[:, 0] for run in runs)


def _value_channels(
    heads: torch.Tensor, touched: Sequence[torch.Tensor], made: torch.Tensor
) -> tuple[torch.Tensor, list[int]]:
    """Returns the channels of each value head in order, and which one each operand head is."""
    different: list[torch.Tensor] = []
    places: list[int] = []
    for one in touched:
        at = next((i for i, d in enumerate(different) if torch.equal(d, one)), len(different))
        if at == len(different):
            different.append(one)
        places.append(at)
    rows = []
    for at in range(len(different)):
        head, found = places.index(at), []
        for channel in range(heads.shape[2]):
            hit = _touched(heads, head, made, channel).nonzero()[:, 0]
            if len(hit) != 1:
                raise NoMatchError("the channels of its values are mixed with one another")
            found.append(hit)
        rows.append(torch.cat(found))
    return torch.stack(rows), places


def _by_query(places: list[int], operand: Operand, heads: int) -> torch.Tensor:
    """Returns the value head of each query head; grouped operators repeat them in turn."""
    repeated = torch.tensor(places).repeat_interleave(heads // operand.heads)
    if len(repeated) != heads:
        raise NoMatchError(f"{operand.heads} value heads do not serve {heads} query heads")
    return repeated


def _by_heads(operand: Operand, tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Returns heads x tokens x size; sequences of a batch follow one another.

    Args:
        operand: Where the heads stand in it.
        tensor: Contents of the operand's value.
        size: Size of a head.
    """
    if operand.layout == "parts":
        tensor = tensor[..., operand.first, :].transpose(-2, -3)
    elif operand.layout == "flat":
        span = slice(operand.first * size, (operand.first + operand.heads) * size)
        tensor = tensor[..., span]
        tensor = tensor.reshape(*tensor.shape[:-1], operand.heads, size).transpose(-2, -3)
    elif operand.layout == "transposed":
        tensor = tensor.mT
    tensor = tensor.reshape(-1, operand.heads, *tensor.shape[-2:])
    return tensor.transpose(0, 1).reshape(operand.heads, -1, tensor.shape[-1])

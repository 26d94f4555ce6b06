"""Float constants that belong to no weight: biases, norms, and what no kernel reads directly.

They stay as they are, so their bytes are part of every file, and each says what reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..units import FLOAT_TYPES, SMALLEST_UNIT
from .static_values import StaticValues

_MOST_STEPS = 3  # operators between a constant and its reader that are named


@dataclass(frozen=True)
class LooseFloat:
    """A float constant that is no part of any weight.

    Attributes:
        name: Name of the initializer, or of the output of the Constant node.
        entries: Number of entries.
        bytes: Bytes in the file.
        why: Why it is no unit.
    """

    name: str
    entries: int
    bytes: int
    why: str


def loose_floats(
    nodes: Iterable[ir.Node], static: StaticValues, owned: Mapping[ir.Value, str]
) -> tuple[LooseFloat, ...]:
    """Returns the float constants that nobody owns, largest first.

    Args:
        nodes: All nodes of the model.
        static: What depends on constants alone.
        owned: Constants that belong to a weight.
    """
    readers = _Readers(nodes, static)
    found = [
        LooseFloat(str(value.name), tensor.size, static.size(value), readers.why(value))
        for value, tensor in static.constants.items()
        if value not in owned and tensor.dtype in FLOAT_TYPES
    ]
    return tuple(sorted(found, key=lambda one: (-one.bytes, one.name)))


class _Readers:
    """For every static value, the first node that reads it at run time, and the way there."""

    def __init__(self, nodes: Iterable[ir.Node], static: StaticValues) -> None:
        self._static = static
        self._found: dict[ir.Value, tuple[ir.Node, tuple[str, ...]]] = {}
        for node in reversed(list(nodes)):
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        reader: ir.Node = node
        steps: tuple[str, ...] = ()
        if all(value in self._static for value in node.outputs):
            known = next((self._found[v] for v in node.outputs if v in self._found), None)
            if known is None:
                return
            reader, later = known
            steps = (node.op_type, *later)[:_MOST_STEPS]
        for value in node.inputs:
            if value is not None and value in self._static:
                self._found[value] = reader, steps

    def why(self, constant: ir.Value) -> str:
        """Returns why a constant is no unit."""
        if constant not in self._found:
            return "it is an output" if constant.is_graph_output() else "nothing reads it"
        reader, steps = self._found[constant]
        through = f" through {', '.join(steps)}" if steps else ""
        small = self._static.constants[constant].size < SMALLEST_UNIT
        of_size = f", and it has fewer than {SMALLEST_UNIT} entries" if small else ""
        return f"{reader.op_type} {reader.name!r} reads it{through}{of_size}"

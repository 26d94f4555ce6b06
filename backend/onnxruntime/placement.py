"""Where the nodes of a loaded model really run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ...ir import MachineError

if TYPE_CHECKING:
    import onnxruntime

_CPU = "CPUExecutionProvider"
RECORDED = ("session.record_ep_graph_assignment_info", "1")
# What the runtime puts on the CPU by itself, because it only computes shapes and positions.
_ABOUT_SHAPES = {
    *("Add", "And", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand"),
    *("Floor", "Gather", "Greater", "Identity", "If", "Less", "Loop", "Max", "Min", "Mod"),
    *("Mul", "NonZero", "Not", "Or", "Range", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "Reshape", "Scan", "Shape", "Size", "Slice", "Squeeze", "Sub"),
    *("Unsqueeze", "Where"),
}


def fallen_back(session: onnxruntime.InferenceSession, provider: str) -> list[tuple[str, str]]:
    """Returns the nodes that run on the CPU although another provider was asked for.

    Args:
        session: Loaded with the setting ``RECORDED``.
        provider: The provider.

    Returns:
        Operator and name of each node that is more than arithmetic on shapes.
    """
    if provider == _CPU:
        return []
    return [
        (node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _CPU
        for node in part.get_nodes()
        if node.op_type not in _ABOUT_SHAPES
    ]


def refuse_fallback(fallen: list[tuple[str, str]], provider: str) -> None:
    """Refuses nodes that run on the CPU.

    Raises:
        MachineError: There are some.
    """
    if not fallen:
        return
    kinds = ", ".join(
        f"{count} {kind}" for kind, count in Counter(one for one, _ in fallen).most_common(4)
    )
    raise MachineError(
        f"{len(fallen)} nodes run on the CPU instead of {provider}: {kinds}; the first is"
        f" {fallen[0][1]!r}",
        hint="--allow-fallback accepts that; each such node copies its data both ways",
    )

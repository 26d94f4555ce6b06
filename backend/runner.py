"""The runner that passes are given: torch for sweeps, ONNX Runtime for proof."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..ir import Capabilities
from .onnxruntime.runner import RuntimeSession, open_session

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runner:
    """Executes segments in torch and whole models in ONNX Runtime.

    Attributes:
        provider: The execution provider for whole models.
        threads: Threads inside an operator; None lets the runtime choose.
        exact: Whether the runtime computes what the graph says, and rounds nothing by itself.
    """

    provider: str = "CPUExecutionProvider"
    threads: int | None = None
    exact: bool = False

    @classmethod
    def of(cls, table: Capabilities, threads: int | None = None) -> Runner:
        """Returns the runner of a target."""
        exact = not any(kernel.accuracy_level for kernel in table.kernels)
        return cls(table.provider, threads, exact)

    def segment(
        self, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
    ) -> torch.nn.Module:
        """Returns a differentiable module that maps ``inputs`` to a tuple of ``outputs``."""
        from .torch_fx import lower_segment

        return lower_segment(nodes, inputs, outputs)

    def unsupported(self, nodes: Iterable[ir.Node]) -> Mapping[ir.Node, str]:
        """Returns the nodes that ``segment`` cannot run, with the reason."""
        from .torch_fx import unsupported

        return unsupported(nodes)

    def session(self, model: ir.Model | Path) -> AbstractContextManager[RuntimeSession]:
        """Opens ``model`` in ONNX Runtime; closing it frees everything.

        The weights of a file stay where they are.
        """
        mapped = isinstance(model, Path)
        return open_session(
            model, self.provider, threads=self.threads, exact=self.exact, mapped=mapped
        )

"""What a finished model can be run in, to see what it says there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..backend.endpoint import Endpoint
from ..ir import Feeds, UsageError
from ..ir.text_form import did_you_mean

RUNTIMES = ("onnxruntime", "openvino", "torch")


class LoadedModel(Protocol):
    """A model in some runtime."""

    @property
    def inputs(self) -> tuple[Endpoint, ...]:
        """What it must be fed."""
        ...

    @property
    def outputs(self) -> tuple[Endpoint, ...]:
        """What it returns."""
        ...

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the named outputs (all of them by default) for one sample."""
        ...


@dataclass(frozen=True)
class Runtime:
    """Where to run a model.

    Attributes:
        name: ``onnxruntime``, ``openvino``, or ``torch``: the graph as the ONNX standard has
            it, step by step in the types of its values.
        target: Whose provider ONNX Runtime uses.
        exact: Whether the runtime may round nothing that the graph does not round; torch never
            does.

    Raises:
        UsageError: There is no such runtime or target, or the two exclude each other.
    """

    name: str = "onnxruntime"
    target: str = "ort-cpu"
    exact: bool = False

    def __post_init__(self) -> None:
        from ..backend.onnxruntime.capabilities import load

        if self.name not in RUNTIMES:
            hint = did_you_mean(self.name, RUNTIMES)
            raise UsageError(f"unknown runtime {self.name!r}", hint=hint)
        if self.name != RUNTIMES[0] and load(self.target).provider != _CPU:
            raise UsageError(
                f"{self.target} is a target of onnxruntime, not of {self.name}",
                hint="leave out --target",
            )

    def session(self, model: Path) -> AbstractContextManager[LoadedModel]:
        """Loads ``model``; leaving the context frees everything.

        Raises:
            InputError: The runtime refuses the model.
            MachineError: The runtime is not there.
        """
        if self.name == "openvino":
            from ..backend.openvino import open_openvino

            return open_openvino(model, exact=self.exact)
        if self.name == "torch":
            from ..backend.torch_fx.session import open_torch

            return open_torch(model)
        from ..backend.onnxruntime.capabilities import load
        from ..backend.onnxruntime.runner import open_session

        return open_session(model, load(self.target).provider, exact=self.exact)


_CPU = "CPUExecutionProvider"

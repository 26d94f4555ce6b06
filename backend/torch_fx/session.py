"""Runs a whole model in torch: what its graph says by the standard, with nothing fused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Feeds, InputError, read_model
from ..endpoint import Endpoint, fitting
from .lower import lower_model

_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}


class TorchSession:
    """A model lowered to torch.

    Attributes:
        inputs: What it must be fed.
        outputs: What it returns.
    """

    def __init__(self, model: ir.Model) -> None:
        self._module = lower_model(model)
        given = [value for value in model.graph.inputs if not value.is_initializer()]
        self.inputs = tuple(_endpoint(value) for value in given)
        self.outputs = tuple(_endpoint(value) for value in model.graph.outputs)

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the named outputs (all of them by default) for one sample.

        Raises:
            InputError: The model fails on the feeds.
        """
        fed = fitting(feeds, self.inputs)
        given = [torch.from_numpy(np.asarray(fed[one.name], order="C")) for one in self.inputs]
        try:
            with torch.no_grad():
                found = self._module(*given)
        except (RuntimeError, ValueError, IndexError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"the model fails in torch: {text}") from error
        names = [one.name for one in self.outputs]
        wanted = names if outputs is None else outputs
        return {name: found[names.index(name)].numpy() for name in wanted}


def _endpoint(value: ir.Value) -> Endpoint:
    dims = value.shape if value.shape is not None else ()
    sizes = tuple(one if isinstance(one, int) else one.value for one in dims)
    dtype = value.dtype or ir.DataType.UNDEFINED
    kind = _NAMES.get(dtype, dtype.name.lower())
    return Endpoint(str(value.name), f"tensor({kind})", sizes)


@contextlib.contextmanager
def open_torch(model: Path | str) -> Iterator[TorchSession]:
    """Reads a file and lowers it.

    Raises:
        InputError: The file is broken, or an operator of it has no lowering.
    """
    yield TorchSession(read_model(Path(model)))

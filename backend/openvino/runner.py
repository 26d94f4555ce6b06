"""Runs a model in OpenVINO on the CPU."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir import Feeds, InputError, MachineError, temporary_folder, write_model
from ..clipping import clips_sums
from ..endpoint import Endpoint, fitting

DEVICE = "CPU"
# Float32 where the graph has float32: no bfloat16, and no activations rounded to int8.
_EXACT = {"EXECUTION_MODE_HINT": "ACCURACY"}
_IN_FLOATS = {"LP_TRANSFORMS_MODE": "NO"}  # integers are multiplied as floats
_INSTALL = "pip install 'mpqc[openvino]'"
_TYPES = {
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float",
    "f64": "double",
    "boolean": "bool",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
}


class OpenVinoSession:
    """A model loaded in OpenVINO.

    Attributes:
        inputs: What it must be fed.
        outputs: What it returns.
        provider: ``OpenVINO``.
    """

    provider = "OpenVINO"

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.inputs = tuple(_endpoint(port) for port in compiled.inputs)
        self.outputs = tuple(_endpoint(port) for port in compiled.outputs)

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the named outputs (all of them by default) for one sample.

        Raises:
            InputError: The feeds do not fit the model, or it fails on them.
        """
        names = list(outputs) if outputs is not None else [one.name for one in self.outputs]
        fed = fitting(feeds, self.inputs)
        given = {one.name: np.asarray(fed[one.name], order="C") for one in self.inputs}
        try:
            found = self._compiled(given)
        except RuntimeError as error:  # the library has no class of its own
            raise InputError(f"the model fails in OpenVINO: {_line(error)}") from error
        places = {one.name: at for at, one in enumerate(self.outputs)}
        return {name: np.array(found[places[name]]) for name in names}

    def close(self) -> None:
        """Frees the model."""
        self._compiled = None


def _endpoint(port: Any) -> Endpoint:
    kind = port.get_element_type().get_type_name()
    dims = (None if one.is_dynamic else one.get_length() for one in port.get_partial_shape())
    return Endpoint(port.get_any_name(), f"tensor({_TYPES.get(kind, kind)})", tuple(dims))


def installation_problem() -> str | None:
    """Returns in one line why OpenVINO cannot run here, or None when it can."""
    if find_spec("openvino") is None:
        return f"OpenVINO is not installed: {_INSTALL}"
    return None


@contextlib.contextmanager
def open_openvino(
    model: ir.Model | Path | str, *, threads: int | None = None, exact: bool = False
) -> Iterator[OpenVinoSession]:
    """Loads ``model`` in OpenVINO; leaving the context frees everything.

    Args:
        model: A file, or a graph, which is written to a temporary folder first.
        threads: Threads; None lets the runtime choose.
        exact: Compute what the graph says. Otherwise the runtime rounds activations to
            bfloat16 where the machine multiplies those, or to int8 in front of stored codes,
            and processors without VNNI clip sums of two products of bytes.

    Raises:
        InputError: The runtime refuses the model.
        MachineError: OpenVINO is not installed.
    """
    if installation_problem() is not None:
        raise MachineError("OpenVINO is not installed", hint=_INSTALL)
    with temporary_folder() as folder:
        path = Path(model) if not isinstance(model, ir.Model) else folder / "model.onnx"
        if isinstance(model, ir.Model):
            write_model(model, path)
        session = OpenVinoSession(_load(path, threads, exact))
        try:
            yield session
        finally:
            session.close()
            gc.collect()


def _load(path: Path, threads: int | None, exact: bool) -> Any:
    import openvino

    settings: dict[str, Any] = dict(_EXACT) if exact else {}
    if exact and clips_sums():
        settings |= _IN_FLOATS
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(path.absolute()), DEVICE, settings)
    except RuntimeError as error:  # the library has no class of its own
        raise InputError(f"OpenVINO cannot load the model: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Returns the library's message, without the locations in its sources."""
    lines = [one.strip() for one in str(error).splitlines()]
    said = [one for one in lines if one and not one.startswith(("Exception from", "Check '"))]
    return " ".join(said or lines)[:400]

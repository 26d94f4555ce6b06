"""Builds an engine of an ONNX file in TensorRT (version 10 or 11), and runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...ir import Feeds, InputError, MachineError
from ..packages import PACKAGES

_LONGEST = 300  # characters of a reason
Shapes = Mapping[str, tuple[int, ...]]


def build(model: Path, runs: Sequence[Shapes]) -> bytes:
    """Builds an engine for inputs of exactly these shapes.

    Args:
        model: An ONNX file.
        runs: Shapes of the inputs, by name, of each kind of run: a profile for each.

    Returns:
        The serialized engine. It tells in detail what its layers are.

    Raises:
        InputError: TensorRT does not take the graph.
        MachineError: There is no TensorRT, no device, or it cannot build.
    """
    trt = _tensorrt()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        told = [parser.get_error(at).desc() for at in range(parser.num_errors)]
        raise InputError(f"TensorRT does not take {model.name}: {_first(told, logger)}")
    settings = builder.create_builder_config()
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    inputs = [network.get_input(at) for at in range(network.num_inputs)]
    open_inputs = [one.name for one in inputs if -1 in tuple(one.shape)]
    for shapes in runs if open_inputs else ():
        profile = builder.create_optimization_profile()
        for name in open_inputs:
            profile.set_shape(name, shapes[name], shapes[name], shapes[name])
        settings.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise MachineError(f"TensorRT cannot build {model.name}: {_first([], logger)}")
    return bytes(plan)


def _strongly_typed(trt: Any) -> int:
    """Returns the flags of a network whose types are those of the graph.

    From version 11 on there is no other kind, and the flag may go.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


class Engine:
    """An engine on the first device, its memory held by torch."""

    def __init__(self, trt: Any, engine: Any, device: Any, logger: Any) -> None:
        self._trt, self._engine, self._device = trt, engine, device
        self._logger = logger
        self._context = engine.create_execution_context()
        self._buffers: dict[str, Any] = {}
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        read = trt.TensorIOMode.INPUT
        self._inputs = [one for one in names if engine.get_tensor_mode(one) == read]
        self._outputs = [one for one in names if one not in self._inputs]

    def account(self) -> str:
        """Returns what the engine tells of its layers, as JSON."""
        inspector = self._engine.create_engine_inspector()
        told: str = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return told

    def bind(self, run: int, feeds: Feeds) -> None:
        """Puts a sample on the device, and makes room for what comes of it.

        Args:
            run: The place of its shapes among those that the engine was built for.
            feeds: The sample.

        Raises:
            MachineError: TensorRT does not take the sample's shapes.
        """
        import torch

        context, stream = self._context, torch.cuda.current_stream(self._device)
        if self._engine.num_optimization_profiles > 1:
            self._done(context.set_optimization_profile_async(run, stream.cuda_stream))
            stream.synchronize()
        self._buffers = {}
        for name in self._inputs:
            array = np.array(feeds[name], dtype=self._dtype(name), order="C")
            self._done(context.set_input_shape(name, array.shape))
            self._buffers[name] = self._room(array.shape, array.dtype)
            self._buffers[name][: array.size] = torch.from_numpy(array.reshape(-1))
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            self._buffers[name] = self._room(shape, self._dtype(name))
        for name, buffer in self._buffers.items():
            self._done(context.set_tensor_address(name, buffer.data_ptr()))

    def run(self) -> None:
        """Computes what is bound, and waits for it.

        Raises:
            MachineError: TensorRT fails.
        """
        import torch

        stream = torch.cuda.current_stream(self._device)
        self._done(self._context.execute_async_v3(stream.cuda_stream))
        stream.synchronize()

    def output(self, name: str) -> np.ndarray:
        """Returns an output of the last run."""
        shape = tuple(self._context.get_tensor_shape(name))
        size = int(np.prod(shape, dtype=np.int64))
        return np.asarray(self._buffers[name][:size].cpu().numpy().reshape(shape))

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _room(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Returns device memory: at least one entry, for an empty array has an address too."""
        import torch

        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        size = max(1, int(np.prod(shape, dtype=np.int64)))
        return torch.empty(size, dtype=kind, device=self._device)

    def _done(self, well: object) -> None:
        if well is False:
            raise MachineError(f"TensorRT fails: {_first([], self._logger)}")


@contextmanager
def open_engine(plan: bytes) -> Iterator[Engine]:
    """Loads a serialized engine; leaving the context frees it.

    Raises:
        MachineError: There is no TensorRT or no device, or it does not load the engine.
    """
    trt, device = _tensorrt(), _device()
    logger = _logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise MachineError(f"TensorRT does not load its engine: {_first([], logger)}")
    yield Engine(trt, engine, device, logger)


def _tensorrt() -> Any:
    """Returns the module.

    Raises:
        MachineError: It is not installed, or does not load.
    """
    (package,) = (one for one in PACKAGES if one.module == "tensorrt")
    problem = package.problem()
    if problem is not None:
        raise MachineError(f"TensorRT: {problem}", hint=package.install)
    import tensorrt

    return tensorrt


def _device() -> Any:
    """Returns torch's name of the first device.

    Raises:
        MachineError: torch cannot hold memory there.
    """
    import torch

    if not torch.cuda.is_available():
        raise MachineError(
            "torch finds no CUDA device to hold the engine's memory",
            hint="install a build of torch for CUDA",
        )
    return torch.device("cuda", 0)


def _logger(trt: Any) -> Any:
    """Returns a logger that keeps errors instead of printing them."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Logger()


def _first(told: Sequence[str], logger: Any) -> str:
    """Returns the first thing that was said to be wrong, in one line."""
    return " ".join([*told, *logger.errors, "it does not say why"][0].split())[:_LONGEST]

"""Runs a model in ONNX Runtime, on the provider that was asked for or not at all."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...ir import Feeds, InputError, MachineError, temporary_folder, write_model
from ..clipping import clips_sums
from ..endpoint import Endpoint, fitting
from ..native_log import NativeLog, native_log
from .placement import RECORDED, fallen_back, refuse_fallback

if TYPE_CHECKING:
    import onnxruntime

# Settings that change kernels or numbers without being asked.
_STRAY_SETTINGS = ("ORT_", "ORTMODULE_", "OMP_")
_OWN_SETTINGS = ("ORT_LOGGING_LEVEL",)
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
_CPU = "CPUExecutionProvider"
_MEMORY = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
_EXACT = ("session.qdq_matmulnbits_accuracy_level", "0")
_IN_FLOATS = ("session.disable_quant_qdq", "1")  # integers are multiplied as floats
_MAPPED = ("session.disable_prepacking", "1")
_ERRORS_OF_THE_MACHINE = ("alloc", "memory", "CUDA", "cuDNN", "cuBLAS")


class RuntimeSession:
    """A model loaded in ONNX Runtime.

    Attributes:
        inputs: What it must be fed.
        outputs: What it returns.
        provider: The execution provider that runs it.
    """

    def __init__(self, session: onnxruntime.InferenceSession, provider: str) -> None:
        self._session = session
        self.provider = provider
        self.inputs = tuple(_endpoint(one) for one in session.get_inputs())
        self.outputs = tuple(_endpoint(one) for one in session.get_outputs())

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the named outputs (all of them by default) for one sample.

        Raises:
            InputError: The feeds do not fit the model, or it fails on them.
            MachineError: The machine ran out of something.
        """
        names = list(outputs) if outputs is not None else [one.name for one in self.outputs]
        if not names:  # which the runtime would take for all
            return {}
        try:
            results = self._session.run(names, fitting(feeds, self.inputs))
        except Exception as error:  # the runtime's classes share no base but Exception
            raise refusal("the model fails in ONNX Runtime", error) from error
        return dict(zip(names, results, strict=True))

    def bound(self, feeds: Feeds) -> Callable[[], None]:
        """Puts one sample where the provider computes; returns what runs the model on it.

        Each call waits for the end. All outputs stay on the device, so that the time of a call
        is that of the model and no copy's.

        Raises:
            InputError: The feeds do not fit the model, or it fails on them.
            MachineError: The machine ran out of something.
        """
        import onnxruntime

        memory = _MEMORY.get(self.provider, "cpu")
        try:
            binding = self._session.io_binding()
            for name, array in fitting(feeds, self.inputs).items():
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array, memory, 0)
                binding.bind_ortvalue_input(name, value)
            for one in self.outputs:
                binding.bind_output(one.name, memory, 0)
        except Exception as error:  # the runtime's classes share no base but Exception
            raise refusal("the sample does not fit the model", error) from error
        session = self._session

        def run() -> None:
            try:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:
                raise refusal("the model fails in ONNX Runtime", error) from error

        return run

    def end_profiling(self) -> Path:
        """Returns the file with the runtime's own timings of a session with ``profile``."""
        return Path(self._session.end_profiling())

    def fallen_back(self) -> list[tuple[str, str]]:
        """Returns operator and name of the nodes that run on the CPU instead of the provider.

        Those that only compute shapes do not count.
        """
        return fallen_back(self._session, self.provider)

    def refuse_fallback(self) -> None:
        """Refuses a model of which some nodes run on the CPU instead of the provider.

        Raises:
            MachineError: There are some that do more than compute shapes.
        """
        refuse_fallback(self.fallen_back(), self.provider)


def _endpoint(one: onnxruntime.NodeArg) -> Endpoint:
    return Endpoint(one.name, one.type, tuple(one.shape))


def refusal(what: str, error: Exception) -> InputError | MachineError:
    """Returns a runtime's exception as one of ours: the machine's fault, or the model's."""
    text = " ".join(str(error).split())
    if any(word in text for word in _ERRORS_OF_THE_MACHINE):
        return MachineError(f"{what}: {text}")
    return InputError(f"{what}: {text}")


@contextlib.contextmanager
def open_session(
    model: ir.Model | Path | str | bytes,
    provider: str = "CPUExecutionProvider",
    *,
    threads: int | None = None,
    profile: bool = False,
    exact: bool = False,
    mapped: bool = False,
) -> Iterator[RuntimeSession]:
    """Loads ``model`` in ONNX Runtime; leaving the context frees everything.

    Args:
        model: A file, the bytes of one, or a graph, which is written to a temporary folder
            first.
        provider: The execution provider that must run it.
        threads: Threads inside an operator; None lets the runtime choose.
        profile: Keep the runtime's own timings (see ``end_profiling``).
        exact: Compute what the graph says. Otherwise the runtime rounds the activations of
            products that read DequantizeLinear to int8, and processors without VNNI clip sums
            of two products of bytes.
        mapped: Leave weights where they are, in mapped files, instead of packing a copy for
            the kernels: the model loads in a moment and takes hardly any memory, but computes
            about a tenth more slowly.

    Raises:
        InputError: The runtime refuses the model.
        MachineError: The provider is not there, or memory or space ran out.
    """
    with contextlib.ExitStack() as stack:
        loaded = _loadable(model, stack)
        settings = _settings(threads)
        if profile:
            settings.enable_profiling = True
            folder = stack.enter_context(temporary_folder())
            settings.profile_file_prefix = str(folder / "profile")
        if exact:
            settings.add_session_config_entry(*_EXACT)
            if provider == _CPU and clips_sums():
                settings.add_session_config_entry(*_IN_FLOATS)
        if mapped:
            settings.add_session_config_entry(*_MAPPED)
        opened = [_load(loaded, provider, settings)]
        stack.callback(_free, opened)
        yield opened[0]


def _loadable(
    model: ir.Model | Path | str | bytes, stack: contextlib.ExitStack
) -> Path | bytes:
    """Returns what the runtime can load; a file made for it lasts as long as ``stack``."""
    if isinstance(model, bytes):
        return model
    if not isinstance(model, ir.Model):
        return Path(model).absolute()
    path = stack.enter_context(temporary_folder()) / "model.onnx"
    write_model(model, path)
    return path


def _settings(threads: int | None) -> onnxruntime.SessionOptions:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = (
        4  # what it logs as errors is also raised, and made printable
    )
    settings.use_deterministic_compute = True
    # The arena grows to the largest request and never shrinks; a sweep feeds large ones.
    settings.enable_cpu_mem_arena = False
    if threads is not None:
        settings.intra_op_num_threads = threads
    return settings


def _load(
    model: Path | bytes, provider: str, settings: onnxruntime.SessionOptions
) -> RuntimeSession:
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise MachineError(
            f"this build of ONNX Runtime has no {provider}",
            hint=f"it has {', '.join(onnxruntime.get_available_providers())}",
        )
    wanted = [(provider, _PROVIDER_OPTIONS.get(provider, {}))]
    if provider != _CPU:
        settings.add_session_config_entry(*RECORDED)
    try:
        with _without_stray_settings(), _log_of(provider) as log:
            session = onnxruntime.InferenceSession(
                model, settings, providers=wanted, enable_fallback=False
            )
    except Exception as error:  # the runtime's classes share no base but Exception
        if log.missing_library:
            raise _unusable(provider, log) from error
        raise refusal("ONNX Runtime cannot load the model", error) from error
    if session.get_providers()[0] != provider:
        raise _unusable(provider, log)
    return RuntimeSession(session, provider)


def _log_of(provider: str) -> AbstractContextManager[NativeLog]:
    """Keeps the log of a provider whose libraries may not load, where alone it says so.

    That of the CPU says nothing that is not raised, and loading may take long: whatever else
    the process has to say meanwhile must be seen.
    """
    return contextlib.nullcontext(NativeLog()) if provider == _CPU else native_log()


def _unusable(provider: str, log: NativeLog) -> MachineError:
    lacks = f": {log.missing_library} is missing" if log.missing_library else ""
    return MachineError(
        f"ONNX Runtime cannot use {provider} on this machine{lacks}",
        hint="mpqc doctor says what this machine has",
    )


def _free(opened: list[RuntimeSession]) -> None:
    """Drops the runtime's session even while the caller still holds ours."""
    for one in opened:
        del one._session
    opened.clear()
    gc.collect()


@contextlib.contextmanager
def _without_stray_settings() -> Iterator[None]:
    stray = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_STRAY_SETTINGS) and name not in _OWN_SETTINGS
    }
    for name in stray:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(stray)


def optimized_ops(model: ir.Model | Path | str | bytes) -> Counter[str]:
    """Returns how many nodes of each op type are left after the runtime's own optimizer."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(temporary_folder()) / "optimized.onnx"
        settings = _settings(1)
        settings.optimized_model_filepath = str(path)
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", path.name + ".data"
        )
        _load(_loadable(model, stack), _CPU, settings)
        graph = ir.load(path).graph
        return Counter(node.op_type for node in graph.all_nodes())

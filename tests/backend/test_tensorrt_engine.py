"""How TensorRT is asked to build and to run; a stand-in takes its place."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mpqc.backend import packages
from mpqc.backend.tensorrt import build, engine, open_engine
from mpqc.ir import InputError, MachineError

Patch = pytest.MonkeyPatch
DTYPES = {"x": np.float16, "past": np.float32, "y": np.float32}


class Said(SimpleNamespace):
    """What the stand-in was told."""


class Context:
    """Computes y = 2 x, from address to address."""

    def __init__(self, said: Said) -> None:
        self.said, self.shapes, self.addresses = said, dict[str, Any](), dict[str, int]()

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.said.profile = index
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self.shapes[name] = tuple(shape)
        return bool(self.said.takes)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.shapes["x" if name == "y" else name])

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shapes["x"]))
        read = np.ctypeslib.as_array(
            (ctypes.c_uint16 * count).from_address(self.addresses["x"])
        ).view(np.float16)
        written = (ctypes.c_float * count).from_address(self.addresses["y"])
        np.ctypeslib.as_array(written)[:] = 2 * read.astype(np.float32)
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


@pytest.fixture
def said(monkeypatch: Patch) -> Said:
    """The stand-in for the module, for torch's device, and what it was told."""
    told = Said(takes=True, parses=True, builds=True, profiles=[])
    trt: Any = ModuleType("tensorrt")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"

        def __init__(self) -> None:
            told.logger = self

    def network(flags: int) -> Any:
        told.flags = flags
        inputs = [Said(name="x", shape=(-1, 4)), Said(name="fixed", shape=(2,))]
        return Said(num_inputs=2, get_input=lambda at: inputs[at])

    def built(network: Any, config: Any) -> bytes | None:
        told.verbosity = config.profiling_verbosity
        told.logger.log("warning", "nothing")
        if not told.builds:
            told.logger.log("error", "no kernel\nfor it")
        return b"plan" if told.builds else None

    def parser(network: Any, logger: Any) -> Any:
        error = Said(desc=lambda: "node Foo is not known")
        return Said(
            parse_from_file=lambda path: told.parses,
            num_errors=0 if told.parses else 1,
            get_error=lambda at: error,
        )

    names = ["x", "past", "y"]
    found = Said(
        num_io_tensors=3,
        num_optimization_profiles=2,
        get_tensor_name=lambda at: names[at],
        get_tensor_mode=lambda name: "out" if name == "y" else "in",
        get_tensor_dtype=lambda name: name,
        create_execution_context=lambda: Context(told),
        create_engine_inspector=lambda: Said(get_engine_information=lambda form: form),
    )
    trt.ILogger = ILogger
    trt.NetworkDefinitionCreationFlag = Said(STRONGLY_TYPED=1)
    trt.ProfilingVerbosity = Said(DETAILED="detailed")
    trt.LayerInformationFormat = Said(JSON="{}")
    trt.TensorIOMode = Said(INPUT="in")
    trt.OnnxParser = parser
    trt.nptype = DTYPES.__getitem__
    trt.Builder = lambda logger: Said(
        create_network=network,
        create_builder_config=lambda: Said(add_optimization_profile=told.profiles.append),
        create_optimization_profile=Profile,
        build_serialized_network=built,
    )
    trt.Runtime = lambda logger: Said(
        deserialize_cuda_engine=lambda plan: found if plan == b"plan" else None
    )
    told.module = trt
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(packages.Package, "problem", lambda self: None)
    monkeypatch.setattr(engine, "_device", lambda: torch.device("cpu"))
    stream = Said(cuda_stream=1, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return told


RUNS = [{"x": (1, 4), "fixed": (2,)}, {"x": (512, 4), "fixed": (2,)}]


def test_each_run_has_a_profile_of_the_shapes_that_are_open(said: Said) -> None:
    assert build(Path("m.onnx"), RUNS) == b"plan"
    assert [one.shapes for one in said.profiles] == [
        {"x": ((1, 4),) * 3},
        {"x": ((512, 4),) * 3},
    ]
    assert said.verbosity == "detailed"


def test_networks_are_strongly_typed_in_both_versions(said: Said) -> None:
    build(Path("m.onnx"), RUNS)
    assert said.flags == 2
    said.module.NetworkDefinitionCreationFlag = Said()
    build(Path("m.onnx"), RUNS)
    assert said.flags == 0


def test_what_it_refuses_has_its_reason(said: Said) -> None:
    said.builds = False
    with pytest.raises(MachineError, match="no kernel for it"):
        build(Path("m.onnx"), RUNS)
    said.parses = False
    with pytest.raises(InputError, match="node Foo is not known"):
        build(Path("m.onnx"), RUNS)
    with pytest.raises(MachineError, match="does not load"), open_engine(b"broken"):
        pass


def test_samples_go_there_and_results_come_back(said: Said) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with open_engine(b"plan") as opened:
        assert opened.account() == "{}"
        opened.bind(1, {"x": x, "past": np.zeros((1, 0), np.float32)})
        opened.run()
        assert said.profile == 1
        assert opened.output("y").tolist() == (2 * x).tolist()
        said.takes = False
        with pytest.raises(MachineError, match="TensorRT fails"):
            opened.bind(0, {"x": x, "past": x})


def test_without_the_package_that_is_said(monkeypatch: Patch) -> None:
    monkeypatch.setattr(packages.Package, "installed", lambda self: {})
    with pytest.raises(MachineError, match="not installed"):
        build(Path("m.onnx"), RUNS)

"""Options of the test run; which tests this machine cannot run, and why."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

# How quick this machine is at the moment says nothing about the code, and a change must not
# fail because of an input that its author never saw: `make fuzz` draws other inputs.
settings.register_profile(
    "random", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile("same")


@cache
def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device: torch finds none"


@cache
def _no_tensorrt() -> str:
    return "" if find_spec("tensorrt") else "needs TensorRT: the package is not installed"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch compute on one thread, which is quicker where everything is small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def known_machine() -> Iterator[None]:
    """Lets every machine be of one kind, by whose table of times allocations go.

    For as long as all tests run: what fixtures of a module compile is for that kind, too.
    """
    from mpqc.backend.onnxruntime.costs import tables
    from mpqc.ir.costs import Machine

    known = Machine("of the tests", "avx512-vnni", "onnxruntime", 1, 32 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "here", lambda threads: known)
        yield


_LACKS: dict[str, Callable[[], str]] = {"gpu": _no_gpu, "trt": _no_tensorrt}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--update-golden`` and ``--kills``."""
    text = "write what passes give now into tests/golden, to be reviewed as a diff"
    parser.addoption("--update-golden", action="store_true", help=text)
    text = "how often test_kill.py kills a compile (8)"
    parser.addoption("--kills", type=int, default=8, metavar="N", help=text)


def pytest_collection_finish() -> None:
    """Spares what imports have left from every later collection: sessions end with one."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skips what needs a device or a library that is not here."""
    for item in items:
        for mark, lacks in _LACKS.items():
            if item.get_closest_marker(mark) and lacks():
                item.add_marker(pytest.mark.skip(reason=lacks()))

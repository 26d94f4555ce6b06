"""What NVIDIA's driver says of this machine, asked directly: no toolkit has to be there."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from dataclasses import dataclass
from typing import Any

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MANAGEMENT = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_LONGEST_NAME = 128


@dataclass(frozen=True)
class Gpu:
    """A device.

    Attributes:
        name: What it is called.
        capability: Its compute capability, such as ``9.0``.
        memory: Its bytes.
    """

    name: str
    capability: str
    memory: int


@dataclass(frozen=True)
class Driver:
    """The driver and its devices.

    Attributes:
        cuda: The newest CUDA that it runs, such as ``13.0``.
        gpus: The devices.
    """

    cuda: str
    gpus: tuple[Gpu, ...]


def nvidia_driver() -> Driver | None:
    """Returns the driver; None where none is installed, or it finds no device to start."""
    driver = _load()
    if driver is None or driver.cuInit(0) != 0:
        return None
    count = _number(driver.cuDeviceGetCount)
    version = _number(driver.cuDriverGetVersion)
    if not count or version is None:
        return None
    gpus = tuple(_gpu(driver, place) for place in range(count))
    return Driver(f"{version // 1000}.{version % 1000 // 10}", gpus)


def driver_release() -> str | None:
    """Returns the release of the driver, such as ``580.159.04``; None where nothing tells."""
    library = _load(_MANAGEMENT)
    if library is None or library.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(_LONGEST_NAME)
    failed = library.nvmlSystemGetDriverVersion(text, _LONGEST_NAME)
    library.nvmlShutdown()
    return None if failed else text.value.decode("utf-8", "replace")


def _load(library: str = _DRIVER) -> Any:
    with contextlib.suppress(OSError):
        return ctypes.CDLL(library)
    return None


def _number(ask: Any, *more: int) -> int | None:
    """Returns the number that a function of the driver writes; None where it fails."""
    value = ctypes.c_int()
    return value.value if ask(ctypes.byref(value), *more) == 0 else None


def _gpu(driver: Any, place: int) -> Gpu:
    device = _number(driver.cuDeviceGet, place) or 0
    name = ctypes.create_string_buffer(_LONGEST_NAME)
    driver.cuDeviceGetName(name, _LONGEST_NAME, device)
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = (
        _number(driver.cuDeviceGetAttribute, which, device) for which in (_MAJOR, _MINOR)
    )
    return Gpu(name.value.decode("utf-8", "replace"), f"{major}.{minor}", memory.value)

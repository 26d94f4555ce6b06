"""Refuses a machine whose memory cannot hold the work, before the work."""

from __future__ import annotations

from ..backend.gpu import nvidia_driver
from ..ir import MachineError
from ..passes.engine.execution.memory import available_memory

# What the smallest model takes beside itself: threads, the runtime's arenas, compiled loops.
# Native libraries abort when memory runs out, so nothing could be said any more.
_LEAST = 256 << 20
_SHOWN = 1 << 20


def check_memory(model: int = 0) -> None:
    """Refuses to start when less can be taken than the work takes at least.

    Args:
        model: Bytes of the model's files; all weights are in memory once.

    Raises:
        MachineError: There is too little memory.
    """
    free, least = available_memory(), _LEAST + model
    if free is None or free >= least:
        return
    raise MachineError(
        f"out of memory: {free // _SHOWN} MiB can be taken, this takes at least"
        f" {-(-least // _SHOWN)} MiB",
        hint="close other programs, or raise the limit (see: ulimit -v, memory.max)",
    )


def check_device(model: int = 0) -> None:
    """Refuses to start when no NVIDIA device is here, or none can hold the original.

    Args:
        model: Bytes of the model's files; the original is run on the device, too.

    Raises:
        MachineError: There is none, or none that is large enough.
    """
    hint = "--prove-on cpu runs the result on the CPU instead, for a device elsewhere"
    driver = nvidia_driver()
    if driver is None:
        raise MachineError("no NVIDIA device is here, or its driver does not start", hint=hint)
    largest = max(driver.gpus, key=lambda one: one.memory)
    if largest.memory < model:
        raise MachineError(
            f"the original takes {model // _SHOWN} MiB, {largest.name} has"
            f" {largest.memory // _SHOWN} MiB",
            hint=hint,
        )

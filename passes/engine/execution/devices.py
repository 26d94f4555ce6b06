"""The device that blocks and units are computed on. No other file asks torch what it has.

A device is named as torch names it, with its number: ``cpu``, ``cuda:0``, ``mps:0``. The name
stands in the context of a pass, and travels with the samples; numbers that passes keep come
back to the CPU.
"""

from __future__ import annotations

import re

import torch

from ....ir import MachineError, UsageError
from ....ir.text_form import did_you_mean

AUTO, CPU = "auto", "cpu"
_KNOWN = (AUTO, CPU, "cuda", "mps")
_NUMBERED = re.compile(r"cuda:(\d+)")


def check_name(asked: str) -> None:
    """Refuses what names no device, without asking torch what there is.

    Raises:
        UsageError: There is no such device.
    """
    if asked not in _KNOWN and not _NUMBERED.fullmatch(asked):
        known = "auto, cpu, cuda, cuda:N, mps"
        guess = did_you_mean(asked, _KNOWN) if asked else f"known: {known}"
        hint = guess if known in guess else f"{guess} (known: {known})"
        raise UsageError(f"unknown device {asked!r}", hint=hint)


def find_device(asked: str) -> str:
    """Returns the device to compute on, with its number, once it has added two numbers.

    ``auto`` is the first CUDA device that works, or else the CPU: Apple's devices have no
    float64, and they are taken only when they are asked for.

    Raises:
        UsageError: There is no such device.
        MachineError: This machine, or this build of torch, does not have it.
    """
    check_name(asked)
    if asked == CPU:
        return CPU
    if asked == AUTO:
        return "cuda:0" if cuda_problem() is None else CPU
    if asked == "mps":
        problem, name = mps_problem(), "mps:0"
    else:
        number = _NUMBERED.fullmatch(asked)
        name = f"cuda:{int(number[1])}" if number else "cuda:0"
        problem = cuda_problem(int(name.rpartition(":")[2]))
    if problem is not None:
        raise MachineError(f"device {asked} cannot be used: {problem}", hint=_instead())
    return name


def usable_devices() -> dict[str, str | None]:
    """Returns what torch could compute on, each with why it cannot; None where it can."""
    found = {CPU: None, "cuda": cuda_problem(), "mps": mps_problem()}
    if found["cuda"] is None:
        del found["cuda"]
        found |= {f"cuda:{at}": cuda_problem(at) for at in range(torch.cuda.device_count())}
    return found


def cuda_problem(number: int = 0) -> str | None:
    """Returns why a CUDA device does not work here; None if it does."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built without CUDA"
    count = torch.cuda.device_count()
    if not count:
        return "torch finds no CUDA device, or its driver is too old"
    if number >= count:
        last = f" to cuda:{count - 1}" if count > 1 else " only"
        return f"there is no device {number}: this machine has cuda:0{last}"
    return _trial(f"cuda:{number}")


def mps_problem() -> str | None:
    """Returns why Apple's device does not work here; None if it does."""
    if not torch.backends.mps.is_built():
        return f"torch {torch.__version__} was built without MPS"
    if not torch.backends.mps.is_available():
        return "torch finds no Apple device"
    return _trial("mps:0")


def _trial(name: str) -> str | None:
    try:
        two = torch.ones(2, device=name)
        right = float((two @ two).cpu()) == 2.0
    except (RuntimeError, AssertionError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0][:200]
    return None if right else "it adds numbers wrongly"


def _instead() -> str:
    others = [name for name, problem in usable_devices().items() if problem is None]
    return f"use --device {' or '.join(others)}, or auto"


def settle(device: str) -> None:
    """Waits until a device has done all that was begun, as who takes its time has to."""
    if device != CPU:
        torch.accelerator.synchronize(device)


def free_bytes(device: str) -> tuple[int, int] | None:
    """Returns the free and all bytes of a device with memory of its own, if it tells."""
    if not device.startswith("cuda"):
        return None
    free, total = torch.cuda.mem_get_info(torch.device(device))
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept, total

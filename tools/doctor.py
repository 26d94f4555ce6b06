"""mpqc doctor: what this machine can run, tried, in plain words."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..backend.gpu import Driver, nvidia_driver
from ..backend.onnxruntime.capabilities import load, targets
from ..backend.onnxruntime.installation import provider_problems, target_problem
from ..backend.onnxruntime.probing import NOT_HERE, Opener, Probe, probe
from ..backend.openvino import installation_problem, open_openvino
from ..backend.packages import PACKAGES
from ..ir import MpqcError
from ..passes.engine.execution.devices import usable_devices
from ..passes.engine.execution.memory import available_memory
from .costs import table_facts
from .manifest import versions
from .stats_cache import cache_folder
from .table import aligned

ALL = "all"
_READY = "ready"
_IN = " in "  # between a target and another runtime
_GIGA = 1e9
# By itself OpenVINO would round the activations of convolutions too.
_ELSEWHERE: Mapping[str, Opener] = {"openvino": partial(open_openvino, threads=1, exact=True)}
_TINY_STANDARD = """<ir_version: 10, opset_import: ["" : 21]>
tiny (float[4] x) => (float[4] y) <float scale = {1}, int8 zero = {0}>
{
    codes = QuantizeLinear(x, scale, zero)
    y = DequantizeLinear(codes, scale, zero)
}"""


@dataclass(frozen=True)
class Checkup:
    """What was found.

    Attributes:
        targets: Why each target does not work here; None for those that do.
        runtimes: The same of the other runtimes of ``mpqc eval``.
        packages: The runtimes that can be installed: version, and what is wrong with them.
        providers: What ONNX Runtime was built with, and why that does not work here.
        driver: The driver of NVIDIA's devices; None where there is none.
        devices: Why torch cannot compute on each device; None where it can.
        memory: Bytes that can still be taken; None where the system does not tell.
        disk: Free bytes by folder.
        probes: What became of every row of the targets, and of the same rows in other
            runtimes, which are called ``qdq in openvino``.
        costs: The table of times that allocations go by; nothing without ONNX Runtime.
        shown: The targets of which every row is to be printed.
    """

    targets: dict[str, str | None]
    runtimes: dict[str, str | None]
    packages: dict[str, tuple[str, str | None]]
    providers: dict[str, str | None]
    driver: Driver | None
    devices: dict[str, str | None]
    memory: int | None
    disk: dict[str, int]
    probes: dict[str, tuple[Probe, ...]]
    costs: dict[str, Any]
    shown: tuple[str, ...]

    @property
    def failed(self) -> list[tuple[str, Probe]]:
        """The rows that do not do what the table says, with their target."""
        return [
            (name, one) for name, found in self.probes.items() for one in found if one.failed
        ]

    def problem(self) -> dict[str, str] | None:
        """Returns what is to be told as an error; None when all is well."""
        if None not in self.targets.values():
            return _error("no target works on this machine", "see what is missing above")
        if not self.failed:
            return None
        name, first = self.failed[0]
        more = f", and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
        return _error(
            f"the table of {name} is wrong for this runtime and processor: {first}{more}",
            "results may be wrong: take another version of the runtime, and report this",
        )

    def lines(self) -> Iterator[str]:
        """Yields what to print."""
        yield from aligned(
            [(name, _state(name, found)) for name, found in self.probes.items()]
        )
        for name, one in self.failed:
            yield f"{name}: {one}"
        for name, found in self.probes.items():
            if name.partition(_IN)[0] in self.shown:
                yield from ("", f"{name}, row by row:", *_probe_lines(found))
        yield ""
        yield from aligned([(title, *state) for title, state in self._packages()])
        yield ""
        yield from aligned(list(self._machine()))
        yield ""
        if self.costs:
            yield from aligned([(k.replace("_", " "), str(v)) for k, v in self.costs.items()])
            yield ""
        yield from aligned(list(versions().items()))

    def _packages(self) -> Iterator[tuple[str, tuple[str, str]]]:
        for title, (version, problem) in self.packages.items():
            yield title, (version or "none", problem or "loads")
        for name, problem in self.providers.items():
            yield f"  {name}", ("", problem or "works")

    def _machine(self) -> Iterator[tuple[str, str]]:
        yield "GPU", _gpu_words(self.driver)
        for name, problem in self.devices.items():
            yield f"--device {name}", problem or "works"
        memory = "unknown" if self.memory is None else f"{self.memory / _GIGA:.1f} GB"
        yield "memory that can be taken", memory
        for folder, free in self.disk.items():
            yield f"free in {folder}", f"{free / _GIGA:.1f} GB"

    def facts(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        return {
            "targets": self.targets,
            "runtimes": self.runtimes,
            "packages": {
                title: {"version": version, "problem": problem}
                for title, (version, problem) in self.packages.items()
            },
            "providers": self.providers,
            "gpus": [vars(one) for one in self.driver.gpus] if self.driver else [],
            "cuda": self.driver.cuda if self.driver else None,
            "devices": self.devices,
            "memory": self.memory,
            "disk": self.disk,
            "rows": {
                name: [_probe_facts(one) for one in found]
                for name, found in self.probes.items()
            },
            "costs": self.costs,
            "versions": versions(),
        }


def examine(shown: str | None = None) -> Checkup:
    """Looks at everything and tries every row of every target that works here.

    Args:
        shown: The target whose rows are to be listed, or ``all``; their products are timed.

    Raises:
        UsageError: There is no such target.
    """
    listed = targets() if shown == ALL else (load(shown).target,) if shown else ()
    runtime = next(one for one in PACKAGES if one.module == "onnxruntime")
    gc.freeze()  # what is loaded by now stays to the end: each session ends with a collection
    problems = {name: target_problem(name) for name in targets()}
    runtimes = {"openvino": installation_problem() or _openvino_problem()}
    return Checkup(
        targets=problems,
        runtimes=runtimes,
        packages={
            one.title: (" and ".join(one.installed().values()), one.problem())
            for one in PACKAGES
        },
        providers=provider_problems(),
        driver=nvidia_driver(),
        devices=usable_devices(),
        memory=available_memory(),
        disk=dict(_disk()),
        probes={
            **{
                name: probe(load(name), timed=name in listed, problem=problem)
                for name, problem in problems.items()
            },
            **_probes_elsewhere(runtimes),
        },
        costs=table_facts() if runtime.problem() is None else {},
        shown=listed,
    )


def _probes_elsewhere(runtimes: Mapping[str, str | None]) -> dict[str, tuple[Probe, ...]]:
    """Tries the rows of each table in the other runtimes that it is for, untimed."""
    return {
        f"{name}{_IN}{other}": probe(
            load(name),
            problem=_problem_elsewhere(other, runtimes),
            elsewhere=_ELSEWHERE.get(other),
        )
        for name in targets()
        for other in (one.split()[0] for one in load(name).also)
    }


def _problem_elsewhere(runtime: str, known: Mapping[str, str | None]) -> str | None:
    if runtime in _ELSEWHERE:
        return known[runtime]
    (package,) = (one for one in PACKAGES if one.module == runtime)
    return package.problem() or "rows cannot be tried: mpqc does not run models there"


def _state(name: str, found: Sequence[Probe]) -> str:
    """Returns in words what a runtime does with the rows of a table."""
    target, _, other = name.partition(_IN)
    runtime = other or load(target).runtime.split()[0]
    if found and found[0].verdict == NOT_HERE:
        return found[0].detail
    wrong = sum(one.failed for one in found)
    if wrong:
        return f"{wrong} of {len(found)} rows of the table are wrong in this {runtime}"
    slow = [one.name for one in found if one.slow]
    told = f"; slower than float32 here: {'; '.join(slow)}" if slow else ""
    return f"{_READY}; {len(found)} rows tried in {runtime}, all right{told}"


def _openvino_problem() -> str | None:
    try:
        with open_openvino(ir.from_onnx_text(_TINY_STANDARD)):
            return None
    except MpqcError as error:
        return error.message


def _disk() -> Iterator[tuple[str, int]]:
    """Yields where results and statistics go, and how much room is there."""
    cache = cache_folder()
    for what, folder in (("this folder", Path.cwd()), ("the cache", cache)):
        if folder is None:
            continue
        place = next(one for one in (folder, *folder.parents) if one.exists())
        with suppress(OSError):
            yield what, shutil.disk_usage(place).free


def _error(message: str, hint: str) -> dict[str, str]:
    return {"code": "environment", "message": message, "hint": hint}


def _gpu_words(driver: Driver | None) -> str:
    if driver is None:
        return "none, or no NVIDIA driver"
    devices = (
        f"{one.name} (compute capability {one.capability}, {one.memory / _GIGA:.1f} GB)"
        for one in driver.gpus
    )
    return f"{', '.join(devices)}; the driver runs CUDA up to {driver.cuda}"


def _probe_lines(found: Sequence[Probe]) -> Iterator[str]:
    rows = [("row", "verdict", "error", "time here", "time in the table")]
    for one in found:
        error = "" if one.error is None else f"{one.error:.1e}"
        here = "" if one.time is None else f"{one.time:.2f}"
        known = "" if one.row.time is None else f"{one.row.time:g}"
        why = f": {one.detail}" if one.failed else ""
        rows.append((one.name, f"{one.verdict}{why}", error, here, known))
    yield from aligned(rows)


def _probe_facts(one: Probe) -> dict[str, Any]:
    return {
        "kind": one.row.kind,
        "bits": one.row.bits,
        "group": one.group or "row",
        "used": one.row.offered,
        "verdict": one.verdict,
        "detail": one.detail,
        "error": one.error,
        "time": one.time,
    }

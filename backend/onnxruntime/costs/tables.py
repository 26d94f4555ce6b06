"""The shipped cost tables, those measured on this machine, and which of them to take."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ....ir import UsageError
from ....ir.atomic_file import replacing
from ....ir.costs import Cost, CostTable, Machine
from ....ir.text_form import did_you_mean

AUTO = "auto"
MEASURED = "measured"
# Instructions by which kernels differ, the best first. A processor is of the first kind that
# it has; where that has no table, the next one's is taken.
_KINDS = {
    "amx": "amx_int8",
    "avx512-vnni": "avx512_vnni",
    "avx-vnni": "avx_vnni",
    "avx2": "avx2",
}
_CACHE_SIZES = Path("/sys/devices/system/cpu/cpu0/cache")
_SOME_CACHE = 32 << 20


def here(threads: int) -> Machine:
    """Describes this machine, whose operations run in so many threads."""
    import onnxruntime
    import torch

    facts = torch.cpu.get_capabilities()
    other = str(facts.get("architecture", "unknown"))
    return Machine(
        processor=str(facts.get("cpu_name", "unknown")),
        kind=next((kind for kind, flag in _KINDS.items() if facts.get(flag)), other),
        runtime=f"onnxruntime {onnxruntime.__version__}",
        threads=threads,
        cache=_last_cache(),
    )


def names() -> tuple[str, ...]:
    """Returns the names of the shipped tables."""
    return tuple(_shipped())


def find_table(name: str, threads: int, folder: Path | None) -> CostTable:
    """Returns a cost table.

    Args:
        name: That of a shipped table; ``measured`` for the one that was measured on this
            machine; or ``auto``: that one, else the shipped one of its kind, else that of the
            kind nearest to it.
        threads: Threads of an operation.
        folder: Where measured tables are; None for nowhere.

    Raises:
        UsageError: There is no such table.
    """
    shipped = _shipped()
    if name in shipped:
        return shipped[name]
    if name not in (AUTO, MEASURED):
        hint = did_you_mean(name, (AUTO, MEASURED, *shipped))
        raise UsageError(f"unknown machine {name!r}", hint=hint)
    machine = here(threads)
    measured = None if folder is None else _read_measured(measured_path(folder, machine))
    if measured is not None and measured.machine == machine:
        return measured
    if name == MEASURED:
        raise UsageError(
            "nothing was measured on this machine", hint="run: mpqc doctor --measure"
        )
    kinds = list(_KINDS)
    below = kinds[kinds.index(machine.kind) :] if machine.kind in kinds else []
    return next((shipped[kind] for kind in below if kind in shipped), _any(shipped))


def measured_path(folder: Path, machine: Machine) -> Path:
    """Returns where the table measured on a machine is kept."""
    words = f"{machine.processor} {machine.kind} {machine.runtime} {machine.threads}"
    return folder / (re.sub(r"[^\w.]+", "-", words).strip("-").lower() + ".toml")


def keep(table: CostTable, folder: Path) -> Path:
    """Writes a measured table where ``find_table`` looks for it; returns the file."""
    path = measured_path(folder, table.machine)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as file:
        file.write(text(table).encode("utf-8"))
    return path


def text(table: CostTable) -> str:
    """Returns a table as TOML."""
    lines = [f"source = {_quoted(table.source)}", f"tokens = {list(table.tokens)}", ""]
    lines += ["[machine]", *(f"{k} = {_quoted(v)}" for k, v in asdict(table.machine).items())]
    for name, cost in table.operations.items():
        lines += ["", f"[operations.{name}]"]
        lines += [f"{key} = {_numbers(value)}" for key, value in asdict(cost).items()]
    return "\n".join(lines) + "\n"


def _numbers(value: int | tuple[float, ...]) -> str:
    if isinstance(value, int):
        return str(value)
    return f"[{', '.join(f'{one:.4g}' for one in value)}]"


def _quoted(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return '"' + re.sub(r'[\\"\x00-\x1f\x7f]', " ", value) + '"'


@cache
def _shipped() -> Mapping[str, CostTable]:
    found = sorted(
        (one for one in files(__package__).iterdir() if one.name.endswith(".toml")),
        key=lambda one: one.name,
    )
    names = [one.name.removesuffix(".toml") for one in found]
    return {
        name: _table(name, tomllib.loads(one.read_text("utf-8")))
        for name, one in zip(names, found, strict=True)
    }


def _any(shipped: Mapping[str, CostTable]) -> CostTable:
    """Returns the table of the oldest kind, for processors of which nothing is known."""
    return next(shipped[kind] for kind in reversed(_KINDS) if kind in shipped)


def _read_measured(path: Path) -> CostTable | None:
    """Returns the table in a file; None where there is none that can be read."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        return _table(MEASURED, content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _table(name: str, content: dict[str, Any]) -> CostTable:
    tokens = tuple(map(int, content["tokens"]))
    return CostTable(
        name=name,
        machine=Machine(**content["machine"]),
        source=str(content["source"]),
        tokens=tokens,
        operations={
            key: _cost(value, len(tokens)) for key, value in content["operations"].items()
        },
    )


def _cost(content: dict[str, Any], count: int) -> Cost:
    chunk = int(content.get("chunk", 1))
    parts = {k: tuple(map(float, v)) for k, v in content.items() if k != "chunk"}
    if chunk < 1 or any(len(one) != count for one in parts.values()):
        raise ValueError("a coefficient for every number of tokens")
    return Cost(**parts, chunk=chunk)


def _last_cache() -> int:
    """Returns the bytes of the processor's last cache, or a guess."""
    sizes = [_SOME_CACHE // 1024]
    for path in _CACHE_SIZES.glob("index*/size"):
        try:
            sizes.append(int(path.read_text().strip().removesuffix("K")))
        except (OSError, ValueError):
            continue
    return max(sizes[1:] or sizes) * 1024

"""The tables of what kernels take: which one to go by, and where measured ones are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backend.onnxruntime.capabilities import load
from ..backend.onnxruntime.costs import tables
from ..ir import Capabilities, MachineError
from ..ir.costs import CostTable
from ..passes.engine.pipeline.progress import Progress
from .stats_cache import VARIABLE, cache_folder

_CPU = "CPUExecutionProvider"
_TARGET = "ort-cpu"  # has the kernels of all targets of this provider
THREADS = 1  # of an operation, in tables and where runs are timed
_FOLDER = "costs"


def costs_for(machine: str, table: Capabilities) -> CostTable | None:
    """Returns what operations take on a machine; None where no table tells it.

    Args:
        machine: ``auto``, ``measured`` or the name of a shipped table.
        table: The target.

    Raises:
        UsageError: There is no such machine.
    """
    if table.provider != _CPU or table.stands_in:
        return None
    return tables.find_table(machine, THREADS, _folder())


def measure_here(progress: Progress) -> Path:
    """Times the kernels of this machine; returns where the table is kept.

    Raises:
        MachineError: There is no folder to keep it in.
    """
    from ..backend.onnxruntime.costs.measure import measure

    folder = _folder()
    if folder is None:
        raise MachineError(
            "there is no home folder to keep measurements in", hint=f"set {VARIABLE}"
        )
    found = measure(
        load(_TARGET), THREADS, lambda whats: progress.track(whats, len(whats), "measuring")
    )
    try:
        return tables.keep(found, folder)
    except OSError as error:
        raise MachineError(
            f"cannot write to {folder}: {error.strerror}", hint=f"{VARIABLE} names another"
        ) from error


def table_facts() -> dict[str, Any]:
    """Returns what there is to say about this machine's table."""
    machine, table = tables.here(THREADS), tables.find_table(tables.AUTO, THREADS, _folder())
    return {
        "processor": machine.processor,
        "kind": machine.kind,
        "table": table.name,
        "of": f"{table.machine.processor}, {table.machine.runtime}, {table.source}",
        "this_machine": table.machine == machine,
        "other_tables": ", ".join(one for one in tables.names() if one != table.name),
    }


def whose_times(table: CostTable) -> str:
    """Says that a table was measured elsewhere; empty if it was measured here."""
    machine = tables.here(THREADS)
    if table.machine == machine:
        return ""
    return (
        f"predicted times are those of another machine: {table.machine.processor}"
        f" ({table.name}); mpqc doctor --measure takes this one's"
    )


def _folder() -> Path | None:
    """Returns where measured tables are kept; None where there is no place."""
    cache = cache_folder()
    return None if cache is None else cache / _FOLDER

"""The tables of what kernels take: which one to go by, and where measured ones are kept."""

from __future__ import annotations

from pathlib import Path

from ..backend.onnxruntime.costs.tables import find_table
from ..ir import Capabilities
from ..ir.costs import CostTable
from .stats_cache import cache_folder

_CPU = "CPUExecutionProvider"
THREADS = 1  # of the operations that are measured
_FOLDER = "costs"


def costs_for(machine: str, table: Capabilities) -> CostTable | None:
    """Returns what operations take on a machine; None where no table tells it.

    Args:
        machine: ``auto``, ``measured`` or the name of a shipped table.
        table: The target.

    Raises:
        UsageError: There is no such machine.
    """
    if table.provider != _CPU:
        return None
    return find_table(machine, THREADS, costs_folder())


def costs_folder() -> Path | None:
    """Returns where measured tables are kept; None where there is no place."""
    cache = cache_folder()
    return None if cache is None else cache / _FOLDER

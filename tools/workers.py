"""The processes that take part in a command, if it is told of any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..ir import UsageError

if TYPE_CHECKING:
    from ..passes.engine.pipeline.base import Workers


@contextmanager
def workers_for(where: int | str | None, device: str) -> Iterator[Workers | None]:
    """Gives the workers that ``--workers`` asks for; None where it is not given.

    Args:
        where: How many processes, or the address of a cluster.
        device: What is computed on.

    Raises:
        UsageError: It is neither a number of processes nor an address, or the device is
            another than the CPU.
        MachineError: Ray is not installed, or no cluster answers there.
    """
    if where is None:
        yield None
        return
    if device != "cpu":
        raise UsageError(
            f"workers compute on the CPU, not on {device}",
            hint="add --device cpu, or leave out --workers",
        )
    from ..passes.engine.execution.ray_workers import ray_workers

    with ray_workers(str(where)) as workers:
        yield workers

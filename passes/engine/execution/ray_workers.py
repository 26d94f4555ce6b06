"""Workers that Ray starts, finds and replaces, on this machine or on a cluster.

Ray decides what runs where, repeats what a lost process was doing, and carries small results.
Each of its processes holds one state and drops it when it is given work on another.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ....ir import MachineError, UsageError, temporary_folder
from ..pipeline.base import Item, State
from ..pipeline.instruments import peak_memory
from .handover import Handover, hand_over, taken_up
from .worker_facts import WorkDone, WorkerFacts

_RETRIES = 3  # of a piece of work whose process has ended
_MOST = 1024  # processes on one machine
_STORE = (
    1 << 30
)  # bytes of Ray's own memory for results on this machine; the rest goes to disk
_SHARE = 0.9  # of a machine's memory, as Ray counts it, that one piece may ask for
_SECONDS = 5.0  # to answer
_HINT = "ray start --head --port=6379 here, ray start --address=HERE:6379 on the others"


@contextmanager
def ray_workers(where: str) -> Iterator[RayWorkers]:
    """Gives workers, and ends those that it started.

    Args:
        where: How many processes to start on this machine, or the address of a cluster that
            this machine is part of: ``host:port``, or ``auto`` for the one that runs here.

    Raises:
        UsageError: ``where`` is neither.
        MachineError: Ray is not installed, or no cluster answers there.
    """
    count = _count(where)
    if find_spec("ray") is None:
        raise MachineError("--workers needs Ray", hint="pip install 'mpqc[ray]'")
    if count is None and where != "auto":
        _refuse_silence(where)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would tell its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with ExitStack() as stack:
        own = temporary_folder() if count is not None else nullcontext()
        folder = stack.enter_context(own)  # for what Ray keeps while it runs
        stack.callback(ray.shutdown)
        with _own_signals():
            _connect(ray, where, count, folder)
        yield RayWorkers(ray, stack)


def _count(where: str) -> int | None:
    """Returns the number of processes to start; None for the address of a cluster."""
    if where.isascii() and where.isdigit():
        count = int(where) if len(where) < 9 else _MOST + 1
        if not 1 <= count <= _MOST:
            raise UsageError(f"workers must be 1 to {_MOST} processes, not {where}")
        return count
    if where != "auto" and re.fullmatch(r"[^/\s]+:[0-9]{1,5}", where) is None:
        raise UsageError(
            f"workers are a number of processes or a Ray cluster, not {where!r}",
            hint="--workers 2, or --workers HOST:6379 on a machine of the cluster",
        )
    return None


def _refuse_silence(address: str) -> None:
    """Refuses an address where nothing answers, for which Ray would wait long."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except OSError as error:
        raise MachineError(
            f"no Ray cluster answers at {address}: {error.strerror or error}", hint=_HINT
        ) from error


def _connect(ray: Any, where: str, count: int | None, folder: Path | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if count is None:
            ray.init(address=where, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=count,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=_STORE,
                _temp_dir=str(folder),
                **quiet,
            )
    except Exception as error:  # Ray raises many kinds
        cause = " ".join(str(error).split())[:300]
        if count is None:
            raise MachineError(f"cannot join Ray at {where}: {cause}", hint=_HINT) from error
        hint = "Ray's sockets lie where TMPDIR says, which has to be a short path"
        raise MachineError(f"cannot start Ray: {cause}", hint=hint) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Puts back what Ray does to the signal that ends a process; ours removes files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


class RayWorkers:
    """The processes of a Ray cluster, as ``Workers``."""

    def __init__(self, ray: Any, stack: ExitStack) -> None:
        """Takes a connected Ray.

        Args:
            ray: The module.
            stack: What is left when the workers are no longer needed.
        """
        self._ray, self._stack = ray, stack
        self._folder: Path | None = None
        self._states = 0
        task = ray.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)
        self._task = task(_work)
        self._largest = self._most_memory()

    @contextmanager
    def share(self, state: State, what: str) -> Iterator[_RayCrew]:
        """Hands a state over; says afterwards who did how much. See ``Workers``."""
        progress, facts = state.context.progress, WorkerFacts()
        progress.say(f"{what}: on {self}")
        handed = self._ray.put(self._handed_over(state))
        yield _RayCrew(self._ray, self._task, handed, self._largest, facts)
        for line in facts.lines(what):
            progress.say(line)
        facts.report(what, state.context.report)

    def __str__(self) -> str:
        nodes = self._alive()
        count = int(sum(one["Resources"].get("CPU", 0) for one in nodes))
        return f"{_plural(count, 'worker')} of {_plural(len(nodes), 'machine')}"

    def _alive(self) -> list[dict[str, Any]]:
        return [one for one in self._ray.nodes() if one["Alive"]]

    def _most_memory(self) -> int:
        """Returns the bytes that a piece of work may ask for without waiting for ever."""
        most = max((one["Resources"].get("memory", 0) for one in self._alive()), default=0)
        return int(_SHARE * most)

    def _handed_over(self, state: State) -> Handover:
        if self._folder is None:
            parent = state.context.cache or state.context.scratch
            self._folder = self._stack.enter_context(temporary_folder(parent)).absolute()
        self._states += 1
        return hand_over(state, self._folder, f"state-{self._states}")


@dataclass(frozen=True)
class _RayCrew:
    """Processes of Ray's that are told of one state.

    Attributes:
        ray: The module.
        task: Does a piece of work in one of its processes.
        handover: The state, in Ray's store.
        largest: Bytes that a piece of work may ask for without waiting for ever.
        facts: Who did how much.
    """

    ray: Any
    task: Any
    handover: Any
    largest: int
    facts: WorkerFacts

    def each(
        self, work: Callable[[State, Any], Any], items: Sequence[Item]
    ) -> Iterator[tuple[int, Any]]:
        """Yields places of items and results as they end; see ``Crew``."""
        given = self.ray.put(work)
        dearest_first = sorted(range(len(items)), key=lambda at: -items[at].cost)
        running = {self._submit(given, items[at]): at for at in dearest_first}
        try:
            while running:
                (ended, *_), _ = self.ray.wait(list(running), num_returns=1)
                done = self._result(ended, items[running[ended]])
                self.facts.add(done)
                yield running.pop(ended), done.result
        finally:
            for left in running:
                self.ray.cancel(left)

    def _submit(self, work: Any, item: Item) -> Any:
        need = min(item.need, self.largest)
        sized = self.task.options(name=item.name, **({"memory": need} if need else {}))
        return sized.remote(self.handover, work, item.argument)

    def _result(self, ended: Any, item: Item) -> WorkDone:
        errors = self.ray.exceptions
        try:
            # A copy: the arrays of the original are Ray's, and gone when it is.
            done: WorkDone = copy.deepcopy(self.ray.get(ended))
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise MachineError(
                f"workers died {_RETRIES + 1} times at {item.name!r}:"
                f" {' '.join(str(error).split())[:300]}",
                hint="use fewer workers, or machines with more memory",
            ) from error
        return done


@dataclass
class _Held:
    """The state that this process has taken up."""

    handover: Handover
    state: State


_held: list[_Held] = []  # at most one


def _work(handover: Handover, work: Callable[[State, Any], Any], argument: Any) -> WorkDone:
    """Does one piece of work in a process of Ray's."""
    import torch

    machine = _address()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    if not _held or _held[0].handover.model != handover.model:
        _held.clear()  # before the next one is read
        _held.append(_Held(handover, taken_up(handover, machine)))
    result = work(_held[0].state, argument)
    seconds = time.perf_counter() - begun
    return WorkDone(result, machine, os.getpid(), seconds, peak_memory())


def _address() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())  # type: ignore[no-untyped-call]


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"

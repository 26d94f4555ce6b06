"""Compiles in processes of their own that can be killed at any moment.

Importing torch takes longer than compiling a tiny model, so one process imports everything and
forks a child for each compile. The child can be told to kill itself right before the n-th
change that it makes to the file system, which is when being killed matters most.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

_CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "shutil.rmtree")


@dataclass(frozen=True)
class Ended:
    """How a compile ended.

    Attributes:
        code: The exit code, or minus the number of the signal that killed it.
        seconds: How long it took.
        changes: How many changes it made to the file system; 0 if it was killed.
        errors: What it wrote to stderr.
        mounted: What it left in file systems that were mounted for it.
    """

    code: int
    seconds: float
    changes: int
    errors: str
    mounted: tuple[str, ...] = ()


class Running:
    """A compile that has not been waited for."""

    def __init__(self, server: Server, pid: int, place: Path) -> None:
        self._server, self._place, self.pid = server, place, pid
        self._begun = time.monotonic()

    def kill_after(self, seconds: float) -> Ended:
        """Sends SIGKILL when the compile has run for that long, if it still runs then."""
        time.sleep(max(0.0, self._begun + seconds - time.monotonic()))
        os.kill(self.pid, signal.SIGKILL)  # a zombie until the server has waited for it
        return self.wait()

    def wait(self) -> Ended:
        """Waits for the end."""
        status = int(self._server.ask({"wait": self.pid}))
        seconds = time.monotonic() - self._begun
        facts, errors = self._place / "facts", self._place / "errors"
        found: Any = json.loads(facts.read_text()) if facts.exists() else [0, []]
        text = errors.read_text() if errors.exists() else ""
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, seconds, found[0], text, tuple(found[1]))


class Server:
    """The process that forks compiles. A context, so that it ends."""

    def __init__(self, place: Path, *, mounting: bool = False) -> None:
        """Prepares it.

        Args:
            place: A folder for what compiles say.
            mounting: Whether its compiles may mount file systems that nobody else sees.
        """
        self._place = place
        self._prefix = ["unshare", "-rm"] if mounting else []
        self._count = 0

    def __enter__(self) -> Server:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*self._prefix, sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def ask(self, request: dict[str, object]) -> str:
        """Sends a request and returns the line that answers it."""
        ask, answer = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        print(json.dumps(request), file=ask, flush=True)
        return answer.readline()

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        change: int = 0,
        limits: Mapping[str, int] | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> Running:
        """Starts ``mpqc words``.

        Args:
            words: The command line.
            environment: Variables to set; TMPDIR among them.
            change: Before which change to the file system it kills itself; 0 never.
            limits: Resource limits by name; ``AS`` is added to what the process has already.
            mounts: Options of small file systems by the folder they are mounted on, which
                takes a server with ``mounting``.
        """
        self._count += 1
        place = self._place / str(self._count)
        place.mkdir()
        request = {
            "words": list(words),
            "change": change,
            "limits": dict(limits or {}),
            "mounts": {str(folder): one for folder, one in (mounts or {}).items()},
            "place": str(place),
            "environment": dict(environment),
        }
        return Running(self, int(self.ask(request)), place)


class _Changes:
    """Counts changes to the file system, and stops the process before one of them."""

    def __init__(self, last: int) -> None:
        self._last, self.count = last, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in _CHANGES or (event == "open" and _writes(arguments)):
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _compile(request: dict[str, object]) -> int:
    """Runs one compile in this process, just forked."""
    import tempfile

    from mpqc.tools.cli import main

    place = Path(str(request["place"]))
    errors = os.open(place / "errors", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.environ.update(cast(dict[str, str], request["environment"]))
    tempfile.tempdir = None  # look again
    mounts = cast(dict[str, str], request["mounts"])
    for folder, options in mounts.items():
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        subprocess.run(command, check=True)
    for name, limit in cast(dict[str, int], request["limits"]).items():
        _limit(name, limit)
    changes = _Changes(int(str(request["change"])))
    sys.addaudithook(changes)
    code = main(cast(list[str], request["words"]))
    count = changes.count
    _lift_limits()
    left = [str(one) for folder in mounts for one in Path(folder).rglob("*")]
    (place / "facts").write_text(json.dumps([count, left]))
    return code


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, f"RLIMIT_{name}")
    if name == "AS":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        value += pages * resource.getpagesize()
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _lift_limits() -> None:
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most, most))


def _serve() -> None:
    # What a compile imports; nothing of it may start threads before the fork.
    import torch
    import torch._dynamo

    import mpqc.passes
    import mpqc.tools.api
    import mpqc.tools.cli_commands

    for module in pkgutil.walk_packages(mpqc.passes.__path__, "mpqc.passes."):
        importlib.import_module(module.name)
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitpid(request["wait"], 0)[1], flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = _compile(request)
            finally:
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()

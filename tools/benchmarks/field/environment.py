"""An environment of its own for each tool, and scripts run in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ....ir import MachineError
from .entry import Peer
from .peers.exchange import Job

_STAMP = "mpqc-packages.json"
_INSTALL_SECONDS = 3600
_OFFLINE = {
    "OLIVE_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


def prepare(peer: Peer, folder: Path, log: Path) -> Path:
    """Makes ``folder`` an environment with the tool in it, unless it is one already.

    Returns:
        Its Python.

    Raises:
        MachineError: It cannot be made.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    python, stamp = folder / "bin" / "python", folder / _STAMP
    wanted = json.dumps(peer.packages)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], log, _INSTALL_SECONDS)
    pinned = [one for step in peer.packages for one in step]
    limits = folder / "constraints.txt"
    limits.write_text("\n".join(pinned) + "\n", encoding="utf-8")
    for step in peer.packages:
        words = [str(python), "-m", "pip", "install", "-q", "-c", str(limits), *step]
        _run(words, log, _INSTALL_SECONDS)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def run_script(python: Path, peer: Peer, job: Job, log: Path, seconds: float) -> float:
    """Runs a tool's script with its Python; returns the seconds it took.

    Raises:
        MachineError: It failed or took too long; what it said stands in ``log``.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = log.with_suffix(".job.json")
    job.write(path)
    begun = time.monotonic()
    scripts = {"PYTHONPATH": str(peer.home)}
    _run([str(python), "-m", f"peers.{peer.module}", str(path)], log, seconds, scripts)
    return time.monotonic() - begun


def _run(
    words: Sequence[str], log: Path, seconds: float, more: dict[str, str] | None = None
) -> None:
    environment = {**os.environ, **_OFFLINE, **(more or {})}
    with log.open("w", encoding="utf-8") as stream:
        child = subprocess.Popen(
            words,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = child.wait(seconds)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)  # the tools start workers of their own
            child.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise MachineError(f"gave up after {seconds:.0f} s", hint=f"see {log}") from error
    if code != 0:
        raise MachineError(f"{_last_line(log)} (exit code {code})", hint=f"see {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")

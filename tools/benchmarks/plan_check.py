"""What ``mpqc plan`` predicts, against what the compilation then takes, by pass."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...ir import MachineError, temporary_folder
from ...passes.engine.execution.memory import held_by
from ..comparison.kept import Kept
from ..comparison.markdown import markdown
from ..option_fields import add_options as add_shared
from ..option_fields import option_words, options_in
from ..options import CompileOptions
from .results import show

_SHARED = (
    "budget",
    "file_budget",
    "preset",
    "output",
    "calibration",
    "samples",
    "sequence_length",
    "target",
)
_PASS = re.compile(r"pass \d+ of \d+: (\S+)$")
_PAUSE = 0.1  # seconds between two looks at the process


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="exported folder or file")
    add_shared(parser, CompileOptions, _SHARED)


def run(chosen: argparse.Namespace) -> None:
    """Plans, and compiles in a process of its own, both with nothing in the cache."""
    with temporary_folder() as folder:
        given = {**options_in(chosen, CompileOptions), "output": None}
        begun = time.perf_counter()
        plan = json.loads(_mpqc("plan", chosen.model, given, folder, Seen()))
        seconds = time.perf_counter() - begun
        seen = Seen()
        given["output"] = folder / "compiled"
        result = json.loads(_mpqc("compile", chosen.model, given, folder, seen))
    found = {
        "plan": plan,
        "plan seconds": seconds,
        "passes": result["seconds"],
        "memory": seen.memory,
        "disk": seen.disk,
    }
    if chosen.output is not None:
        Kept(chosen.output / "plan-check.json").put("plan", found)
    show(chosen.output, "plan-check", table(found))


@dataclass
class Seen:
    """What a process held, by the pass that was running.

    Attributes:
        memory: Most bytes of memory, mapped files apart.
        disk: Most bytes of all files that the run has written.
    """

    memory: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    running: str = ""

    def look(self, process: int, folder: Path) -> None:
        """Looks once."""
        for found, now in (
            (self.memory, held_by(process) or 0),
            (self.disk, _bytes_in(folder)),
        ):
            found[self.running] = max(found.get(self.running, 0), now)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # it is gone already
                continue
    return total


def _mpqc(command: str, model: Path, given: dict[str, Any], folder: Path, seen: Seen) -> bytes:
    """Runs a command of mpqc with a cache of its own, and watches it; returns its output."""
    words = [sys.executable, "-m", "mpqc.tools.cli", command, str(model), "--json"]
    words += option_words(CompileOptions, given)
    child = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "MPQC_CACHE": str(folder)},
    )
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_PAUSE):
            seen.look(child.pid, folder)

    assert child.stderr is not None
    assert child.stdout is not None
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for line in child.stderr:
            text = line.decode("utf-8", "replace")
            sys.stderr.write(text)
            match = _PASS.search(text)
            if match is not None:
                seen.running = match[1]
        said = child.stdout.read()
    finally:
        over.set()
        watcher.join()
    if child.wait() != 0:
        raise MachineError(f"mpqc {command} failed", hint="what it said stands above")
    return said


def table(found: dict[str, Any]) -> str:
    """Returns predicted against measured seconds, memory and disk, by pass."""
    steps: dict[str, dict[str, float]] = {}
    kept = 0.0
    for step in found["plan"]["steps"]:
        kept += step["kept"]
        own = steps.setdefault(step["name"], {"seconds": 0.0, "memory": 0.0, "disk": 0.0})
        own["seconds"] += step["seconds"]
        own["memory"] = max(own["memory"], step["memory"])
        own["disk"] = max(own["disk"], kept + step["scratch"])
    rows = []
    for name, own in steps.items():
        measured = (
            found["passes"].get(name),
            found["memory"].get(name),
            found["disk"].get(name),
        )
        rows.append([name, *_pairs(own, measured)])
    whole = {key: max(own[key] for own in steps.values()) for key in ("memory", "disk")}
    known = [name for name in steps if name in found["passes"]]
    seconds = sum(steps[name]["seconds"] for name in known)
    peaks = [max(found[key].values(), default=0) for key in ("memory", "disk")]
    total = (sum(found["passes"].values()), *peaks)
    rows.append(["**all**", *_pairs({**whole, "seconds": seconds}, total)])
    head = ["pass", "s planned", "s taken", "ratio"]
    head += ["GB planned", "GB held", "ratio", "disk planned", "disk taken", "ratio"]
    return markdown(head, rows) + f"\nThe plan took {found['plan seconds']:.1f} s.\n"


def _pairs(own: dict[str, float], measured: Sequence[float | None]) -> list[str]:
    cells = []
    for key, scale, taken in zip(
        ("seconds", "memory", "disk"), (1, 1e9, 1e9), measured, strict=True
    ):
        planned, form = own[key] / scale, ".1f" if key == "seconds" else ".2f"
        if taken is None:
            cells += [f"{planned:{form}}", "", ""]
            continue
        ratio = f"{planned * scale / taken:.2f}" if taken else ""
        cells += [f"{planned:{form}}", f"{taken / scale:{form}}", ratio]
    return cells

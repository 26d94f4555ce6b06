"""Runs cases one after the other and says on stdout how each ended; started by ``campaign``.

A case is a number: it decides the target and, through it, the whole input.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from mpqc.ir.errors import InternalError

from .targets import TARGETS, is_expected

_MEMORY = 2 << 30  # bytes that a case may add to what the libraries take


def make(case: int) -> tuple[str, bytes]:
    """Returns the target and the input of a case."""
    source = random.Random(case)
    (name,) = random.Random(case).choices(
        list(TARGETS), [one.weight for one in TARGETS.values()]
    )
    return name, TARGETS[name].make(source)


def drive(name: str, data: bytes) -> dict[str, Any]:
    """Drives mpqc with an input; ``fault`` holds what failed as no user should see it."""
    with tempfile.TemporaryDirectory(prefix="mpqc-fuzz-") as folder:
        try:
            TARGETS[name].drive(data, Path(folder))
        except Exception as error:
            if is_expected(error):
                return {"outcome": "refused"}
            return {"outcome": "fault", "fault": _account(error)}
    return {"outcome": "fine"}


def _account(error: Exception) -> dict[str, Any]:
    return {"error": type(error).__name__, "text": str(error)[:300]} | _where(error)


def _where(error: BaseException) -> dict[str, Any]:
    """Returns the innermost place of ours, by which faults are told apart, and the trace."""
    while isinstance(error, InternalError) and error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if "mpqc" in one.filename] or list(frames)
    place = f"{'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].lineno}"
    trace = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in frames]
    return {"place": place, "trace": [*trace[-6:], type(error).__name__]}


def limit_memory() -> None:
    """Lets this process take ``_MEMORY`` more than it has taken."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    taken = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (taken + _MEMORY, resource.RLIM_INFINITY))


def main(first: int, folder: Path) -> None:
    """Runs the cases from ``first`` on until somebody ends the process."""
    say = sys.stdout
    sys.stdout = sys.stderr
    drive(*make(_warming()))
    limit_memory()
    case = first
    while True:
        name, data = make(case)
        (folder / "current").write_bytes(data)
        line = {"case": case, "target": name}
        print(json.dumps(line), file=say, flush=True)
        outcome = drive(name, data)
        if "fault" in outcome:
            (folder / "current").replace(folder / f"{name}-{case}")
        print(json.dumps(line | outcome), file=say, flush=True)
        case += 1


def _warming() -> int:
    """Returns a case that compiles, so that all libraries are loaded before limits are set."""
    return next(case for case in range(10_000) if make(case)[0] == "compile")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""Fuzzes mpqc for some minutes: ``python -m tests.fuzz.campaign MINUTES [FOLDER]``.

Cases run in a child process, so that a hang, a crash or a case that eats memory ends the child
and not the campaign. What is found is saved under FOLDER (build/fuzz): the input, to be put
into ``tests/fuzz/cases/<target>/`` once it is mended, and what happened. A campaign goes on
where the last one stopped.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_HANG = 20.0  # seconds
_START = 120.0  # seconds until the libraries are loaded
_EXAMPLES = 2  # inputs saved of one fault


class _Child:
    """A worker and the case that it is at."""

    def __init__(self, first: int, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.fuzz.worker", str(first), str(folder)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        with (folder / "worker.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=_ROOT, env=settings, stdout=subprocess.PIPE, stderr=log
            )

    def lines(self, until: float) -> Iterator[dict[str, Any]]:
        """Yields what the worker says; a last line tells when it hangs or has died."""
        assert self.process.stdout is not None
        patience = _START
        last: dict[str, Any] = {}
        while time.monotonic() < until:
            ready, _, _ = select.select([self.process.stdout], [], [], patience)
            line = self.process.stdout.readline() if ready else b""
            if not line:
                code = self.process.poll() if ready else None
                what = f"the worker died ({code})" if ready else f"more than {patience:.0f} s"
                yield last | {"outcome": "fault", "fault": {"error": what, "place": ""}}
                return
            last, patience = json.loads(line), _HANG
            yield last

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        with suppress(AttributeError):
            self.process.stdout.close()  # type: ignore[union-attr]


def run(
    folder: Path, *, seconds: float = float("inf"), cases: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Runs cases for some time, or some number of them; returns the faults by place."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "next"
    first = int(place.read_text()) if place.exists() else 0
    until, stop = time.monotonic() + seconds, first + cases if cases is not None else None
    faults: dict[str, list[dict[str, Any]]] = {}
    counts: Counter[str] = Counter()
    while time.monotonic() < until and (stop is None or first < stop):
        child = _Child(first, folder)
        try:
            for line in child.lines(until):
                if "outcome" not in line:
                    continue
                if "case" not in line:
                    raise RuntimeError((folder / "worker.log").read_text()[-2000:])
                first = line["case"] + 1
                counts[f"{line['target']} {line['outcome']}"] += 1
                place.write_text(str(first))
                if "fault" in line:
                    _note(folder, line, faults)
                if first == stop:
                    break
        finally:
            child.end()
    print(f"{counts.total()} cases, next {first}: {dict(sorted(counts.items()))}")
    return faults


def _note(folder: Path, line: dict[str, Any], faults: dict[str, list[dict[str, Any]]]) -> None:
    """Keeps a fault, and the inputs of its first cases."""
    found = line["fault"]
    known = faults.setdefault(f"{line['target']} {found['error']} {found['place']}", [])
    known.append(line)
    data = folder / f"{line['target']}-{line['case']}"
    if not data.exists():  # the worker had no time to put it there
        data = folder / "current"
    if len(known) > _EXAMPLES:
        data.unlink()
        return
    name = folder / "found" / line["target"] / str(line["case"])
    name.parent.mkdir(parents=True, exist_ok=True)
    data.replace(name)
    name.with_suffix(".json").write_text(json.dumps(line, indent=1))


def main() -> int:
    """Runs a campaign; returns 1 when something was found."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else _ROOT / "build" / "fuzz"
    faults = run(folder, seconds=minutes * 60)
    for name, lines in sorted(faults.items(), key=lambda one: -len(one[1])):
        print(f"{len(lines):5} x {name}: {lines[0]['fault'].get('text', '')}")
        print(f"        {' < '.join(reversed(lines[0]['fault'].get('trace', [])))}")
    print(
        f"{len(faults)} faults; inputs are in {folder / 'found'}"
        if faults
        else "nothing found"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

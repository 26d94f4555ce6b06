"""One method at one budget: compiled, evaluated, and accounted for when it fails."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...ir import InfeasibleBudget, UsageError, staged_folder, temporary_folder
from ...passes.engine.pipeline.base import Pass
from ...passes.engine.pipeline.spec import print_passes
from ..budget import Budget
from ..compilation import Compilation
from ..evaluate import HeldOut, evaluate_on
from ..failures import account
from ..pass_options import calibrating
from ..runtimes import Runtime
from ..settings import CompileSettings

MEASURED = "measured"
INFEASIBLE = "infeasible"
FAILED = "failed"

_NO_TIME = 1e-9  # milliseconds


@dataclass(frozen=True)
class Point:
    """A method at a budget.

    Attributes:
        method: Name of the method.
        budget: Stored bits per weight.
        settings: What decides the compilation, or why the method knows no such budget.
    """

    method: str
    budget: Budget
    settings: CompileSettings | UsageError

    @property
    def name(self) -> str:
        """What it is called in files and messages."""
        return f"{self.method} at {asked(self.facts())}"

    def facts(self) -> dict[str, Any]:
        """Returns what identifies the point."""
        passes = self.passes()
        return {
            "method": self.method,
            "budget": self.budget.bits,
            "file": self.budget.expand,
            "pipeline": print_passes(passes) if passes else None,
        }

    def passes(self) -> tuple[Pass, ...]:
        """Returns the passes; none where the method knows no such budget."""
        assert self.budget.bits is not None
        if isinstance(self.settings, UsageError):
            return ()
        return self.settings.pipeline(self.budget.bits)


def asked(facts: dict[str, Any]) -> str:
    """Returns the budget of a point as it is shown: ``3.5``, or ``file 3.5``."""
    return f"{'file ' if facts.get('file') else ''}{facts['budget']:g}"


def measure(
    point: Point, job: Compilation, held_out: HeldOut, keep: Path | None
) -> dict[str, Any]:
    """Compiles and evaluates a point; a failure becomes its result.

    Args:
        point: The method and the budget.
        job: The model and its calibration, as ``prepare`` gives them.
        held_out: What to measure on.
        keep: Folder for what is compiled; None throws it away.
    """
    if isinstance(point.settings, UsageError):
        return {**point.facts(), "status": INFEASIBLE, **_reason(point.settings)}
    try:
        return {**point.facts(), "status": MEASURED, **_run(point, job, held_out, keep)}
    except InfeasibleBudget as error:
        return {**point.facts(), "status": INFEASIBLE, **_reason(error)}
    except Exception as error:
        return {**point.facts(), "status": FAILED, **_reason(error)}


def _reason(error: Exception) -> dict[str, Any]:
    code, message, hint, exit_code = account(error)
    found = {"code": code, "reason": message, "hint": hint, "exit_code": exit_code}
    if code == "internal":
        found["traceback"] = "".join(traceback.format_exception(error))
    return found


def _run(
    point: Point, job: Compilation, held_out: HeldOut, keep: Path | None
) -> dict[str, Any]:
    assert isinstance(point.settings, CompileSettings)
    with temporary_folder(job.scratch) as scratch:
        work = replace(job, settings=point.settings, scratch=scratch)
        folder = keep / point.name.replace(" ", "-") if keep else scratch / "compiled"
        with staged_folder(folder, overwrite=True) as stage:
            outcome = work.run(stage)
        model, runtime = folder / "model.onnx", Runtime(target=point.settings.options.target)
        found = evaluate_on(work.original, model, held_out, runtime, job.progress)
    return {
        **found.facts(),
        "files_bytes": outcome.size,
        "predicted": outcome.facts["predicted"],
        **_times(outcome.facts["timings"].get("runs", {})),
        **_timings(outcome.facts["timings"], str(calibrating(point.passes()))),
    }


def _times(runs: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns what runs of the result take relative to the original's, and were to take."""
    found = {}
    for name, run in runs.items():
        found[f"{name}_time"] = run["result"] / max(run["original"], _NO_TIME)
        if "predicted" in run:
            found[f"{name}_predicted"] = run["predicted"] / max(run["original"], _NO_TIME)
    return found


def _timings(found: dict[str, Any], sweep: str) -> dict[str, Any]:
    """Returns the seconds of the sweep apart: whoever came first had to run it for all."""
    passes = dict(found["passes"])
    passes.pop(sweep, None)
    return {
        "seconds": sum(passes.values()),
        "sweep_seconds": found.get(f"{sweep} seconds"),
        "pass_seconds": passes,
    }

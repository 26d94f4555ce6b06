"""Instruments: watch a pipeline run without being part of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import onnx_ir as ir

from ....ir import UsageError, listing
from ....ir.text_form import did_you_mean
from .base import Pass, PassContext
from .dump import check_folder, write_dump
from .registry import pass_class


class Instrument:
    """Sees every pass come and go. Subclasses override what they need."""

    def check(self, passes: Sequence[Pass]) -> None:
        """Refuses, before anything runs, what cannot be done with these passes."""

    def before(self, index: int, pass_: Pass, model: ir.Model) -> None:
        """Is told that a pass begins."""

    def after(
        self, index: int, pass_: Pass, model: ir.Model, context: PassContext, changed: bool
    ) -> bool:
        """Is told that a pass is over and the graph verified; returns whether to go on."""
        return True


def _need_pass(name: str, passes: Sequence[Pass]) -> None:
    """Refuses a name that is not a pass, or not one of these."""
    pass_class(name)
    names = [one.name for one in passes]
    if name not in names:
        raise UsageError(
            f"pass {name!r} is not in the pipeline", hint=did_you_mean(name, names)
        )


class StopAfter(Instrument):
    """Ends the run after the first pass called ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, passes: Sequence[Pass]) -> None:
        _need_pass(self.name, passes)

    def after(
        self, index: int, pass_: Pass, model: ir.Model, context: PassContext, changed: bool
    ) -> bool:
        return pass_.name != self.name


class PrintAfter(Instrument):
    """Prints the graph's listing after every pass called ``name``, or after ``all``."""

    def __init__(self, name: str = "all", stream: TextIO | None = None) -> None:
        self.name = name
        self.stream = stream

    def check(self, passes: Sequence[Pass]) -> None:
        if self.name != "all":
            _need_pass(self.name, passes)

    def after(
        self, index: int, pass_: Pass, model: ir.Model, context: PassContext, changed: bool
    ) -> bool:
        if self.name in ("all", pass_.name):
            stream = self.stream or sys.stderr
            state = "" if changed else " (nothing changed)"
            print(f"// {index:03d} {pass_}{state}\n{listing(model).rstrip()}\n", file=stream)
        return True


def peak_memory() -> int:
    """Returns the most bytes of memory that this program has held so far; 0 if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


@dataclass(frozen=True)
class Timing:
    """The cost of one pass.

    Attributes:
        index: Its place in the pipeline.
        name: Its name.
        seconds: Wall-clock time.
        peak: Most bytes that the program had held by the end of the pass.
        changed: Whether it changed the graph.
    """

    index: int
    name: str
    seconds: float
    peak: int
    changed: bool


class TimePasses(Instrument):
    """Measures every pass. Belongs first in line, or it measures other instruments too.

    Attributes:
        timings: One entry for each pass that ran.
        validation: Seconds by place in the pipeline: what checking each pass cost.
    """

    def __init__(self) -> None:
        self.timings: list[Timing] = []
        self.validation: dict[int, float] = {}
        self._begun = 0.0

    def before(self, index: int, pass_: Pass, model: ir.Model) -> None:
        self._begun = time.perf_counter()

    def after(
        self, index: int, pass_: Pass, model: ir.Model, context: PassContext, changed: bool
    ) -> bool:
        seconds = time.perf_counter() - self._begun
        self.timings.append(Timing(index, pass_.name, seconds, peak_memory(), changed))
        return True

    def add_validation(self, index: int, seconds: float) -> None:
        """Takes down what it cost to check the pass at ``index``."""
        self.validation[index] = self.validation.get(index, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each pass, summed where one ran twice, and of the checks."""
        total: dict[str, float] = {}
        for one in self.timings:
            total[one.name] = total.get(one.name, 0.0) + one.seconds
        if self.validation:
            total["validation"] = sum(self.validation.values())
        return total

    def table(self) -> str:
        """Returns the timings as text, one line for each pass and one for their sum."""
        width = max([len(one.name) for one in self.timings] + [5])
        checked = bool(self.validation)
        head = f"{'pass':<{width}}  {'seconds':>8}  {'peak so far':>11}"
        lines = [head + ("  validation" if checked else "")]
        for one in self.timings:
            line = f"{one.name:<{width}}  {one.seconds:8.2f}  {one.peak / 2**20:7.0f} MiB"
            check = f"  {self.validation.get(one.index, 0.0):10.2f}" if checked else ""
            lines.append(line + check)
        total = sum(one.seconds for one in self.timings)
        last = f"{'total':<{width}}  {total:8.2f}"
        if checked:
            last += f"{'':15}{sum(self.validation.values()):10.2f}"
        return "\n".join([*lines, last]) + "\n"


class DumpAfterEach(Instrument):
    """Writes, after every pass, a dump from which ``mpqc opt`` continues.

    Attributes:
        folder: Where the dumps go.
        pipeline: The whole pipeline as text.
        settings: The tools' record of how to continue; plain JSON.
        written: The dumps written so far.
    """

    def __init__(self, folder: Path, pipeline: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.pipeline = pipeline
        self.settings = settings
        self.written: list[Path] = []

    def check(self, passes: Sequence[Pass]) -> None:
        check_folder(self.folder, self.pipeline, self.settings)

    def after(
        self, index: int, pass_: Pass, model: ir.Model, context: PassContext, changed: bool
    ) -> bool:
        path = write_dump(
            self.folder,
            model,
            context,
            pipeline=self.pipeline,
            index=index,
            name=pass_.name,
            settings=self.settings,
        )
        self.written.append(path)
        return True

"""What the user wants to see of a pipeline while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..passes.engine.pipeline.instruments import (
    DumpAfterEach,
    Instrument,
    PrintAfter,
    StopAfter,
    TimePasses,
)
from .unit_facts import CollectUnits


@dataclass(frozen=True)
class Watch:
    """Options that look at a run without changing its result.

    Attributes:
        dump_after_each: Folder for a dump after every pass.
        stop_after: Name of the pass to stop after.
        print_after: Name of the pass (or ``all``) after which to print the graph to stderr.
        time_passes: Whether to show what each pass cost.
    """

    dump_after_each: Path | None = None
    stop_after: str | None = None
    print_after: str | None = None
    time_passes: bool = False

    def instruments(
        self, timer: TimePasses, pipeline: str, settings: Mapping[str, Any]
    ) -> list[Instrument]:
        """Returns the instruments in the order in which they must look.

        Args:
            timer: Measures every pass, so it comes first.
            pipeline: The whole pipeline as text, for dumps.
            settings: What a run that goes on from a dump needs to know.
        """
        chosen: list[Instrument] = [timer, CollectUnits()]
        if self.print_after is not None:
            chosen.append(PrintAfter(self.print_after))
        if self.dump_after_each is not None:
            chosen.append(DumpAfterEach(self.dump_after_each, pipeline, settings))
        if self.stop_after is not None:
            chosen.append(StopAfter(self.stop_after))
        return chosen

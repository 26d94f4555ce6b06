"""What the user wants to see of a pipeline while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .option_fields import option

if TYPE_CHECKING:
    from ..passes.engine.pipeline.base import PassContext
    from ..passes.engine.pipeline.instruments import Instrument, TimePasses
    from ..passes.engine.pipeline.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Options that look at a run without changing its result."""

    dump_after_each: Path | str | None = option(
        "folder for a dump after every pass", Path, metavar="DIR"
    )
    stop_after: str | None = option("pass to stop after", metavar="PASS")
    print_after: str | None = option(
        "pass, or all, after which to print the graph to stderr", metavar="PASS"
    )
    time_passes: bool = option("show what each pass cost", bool)
    no_validate: bool = option(
        "do not check that each pass preserves what it promises of the graph's function", bool
    )
    accept_loss: bool = option("write a result even if it lost far more than predicted", bool)

    def instruments(
        self,
        timer: TimePasses,
        context: PassContext,
        pipeline: Pipeline,
        settings: Mapping[str, Any],
    ) -> list[Instrument]:
        """Returns the instruments in the order in which they must look.

        Args:
            timer: Measures every pass, so it comes first.
            context: What the passes are given.
            pipeline: The whole pipeline, for dumps.
            settings: What a run that goes on from a dump needs to know.
        """
        from ..passes.engine.pipeline import instruments
        from .unit_facts import CollectUnits

        chosen: list[Instrument] = [timer, CollectUnits()]
        if not self.no_validate:  # before anything of a wrong result is written
            from ..passes.engine.validation.instrument import Validation

            chosen.append(Validation(context, timer))
        if self.print_after is not None:
            chosen.append(instruments.PrintAfter(self.print_after))
        if self.dump_after_each is not None:
            folder = Path(self.dump_after_each)
            chosen.append(instruments.DumpAfterEach(folder, str(pipeline), settings))
        if self.stop_after is not None:
            chosen.append(instruments.StopAfter(self.stop_after))
        return chosen

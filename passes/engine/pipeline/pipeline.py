"""Pipelines: passes in an order that can work, run one after the other and verified."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ....ir import Annotation, InternalError, MachineError, MpqcError, UsageError, verify
from ....ir.annotation import class_of
from .base import Pass, PassContext
from .forecast import Forecast
from .freed_memory import return_freed_memory
from .instruments import Instrument
from .outlook import Outlook
from .progress import Stage
from .registry import all_passes
from .spec import parse_passes, print_passes
from .work import Work

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes. ``str(pipeline)`` is what ``Pipeline.parse`` reads."""

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Reads ``normalize,calibrate{...},allocate-bits{budget=3.5}``.

        Raises:
            UsageError: The text names a pass or an option that does not exist.
        """
        return cls(parse_passes(text))

    def __str__(self) -> str:
        return print_passes(self.passes)

    def check(self, model: ir.Model, first: int = 0) -> None:
        """Refuses an order that cannot work.

        Args:
            model: The graph that the pass at ``first`` will see.
            first: Where to start: the passes before have run already.

        Raises:
            UsageError: A pass reads an annotation that the model does not carry and no earlier
                pass writes.
        """
        forecast = Forecast(frozenset(_carried(model)))
        dropped: dict[type[Annotation], Pass] = {}
        for one in self.passes[first:]:
            for cls in one.reads:
                if cls not in forecast.notes:
                    raise _missing(one, cls, dropped.get(cls))
            dropped.update(dict.fromkeys(one.drops, one))
            forecast = one.forecast(forecast)

    def run(
        self,
        model: ir.Model,
        context: PassContext,
        instruments: Sequence[Instrument] = (),
        first: int = 0,
    ) -> int:
        """Rewrites ``model`` in place and verifies it after every pass.

        Args:
            model: The graph.
            context: What passes may use beside it.
            instruments: Who watches; each can end the run after a pass.
            first: Where to start: the passes before have run already.

        Returns:
            How many passes of the pipeline have run by now, those before ``first`` included.

        Raises:
            MpqcError: Of a pass, untouched; an InternalError when a pass broke the graph or
                failed in a way of its own.
        """
        self.check(model, first)
        for instrument in instruments:
            instrument.check(self.passes[first:])
        expected: tuple[float, ...] = ()
        for index in range(first, len(self.passes)):
            one = self.passes[index]
            if one.expensive:
                expected = self._expected(index, model, context)
            stage = Stage(index, one.name, expected, len(self.passes))
            context.progress.begin(stage)
            if not self._step(index, model, context, instruments):
                return index + 1
        return len(self.passes)

    def _step(
        self,
        index: int,
        model: ir.Model,
        context: PassContext,
        instruments: Sequence[Instrument],
    ) -> bool:
        """Runs one pass; returns whether all instruments let the run go on."""
        one = self.passes[index]
        for instrument in instruments:
            instrument.before(index, one, model)
        changed = self._apply(index, model, context)
        return_freed_memory()
        going = [inst.after(index, one, model, context, changed) for inst in instruments]
        return all(going)

    def _apply(self, index: int, model: ir.Model, context: PassContext) -> bool:
        one = self.passes[index]
        try:
            if one.expensive:
                self.preflight(index, model, context)
            changed = one.run(model, context)
        except MpqcError:
            raise
        except Exception as error:
            raise _failure(error, one, self.passes[:index]) from error
        try:
            verify(model)
        except MpqcError as error:
            where = f"pass {one} left a broken graph{_after(self.passes[:index])}"
            raise InternalError(f"{where}: {error.message}", hint=error.hint) from error
        return changed

    def works(self, first: int, model: ir.Model, context: PassContext) -> list[Work]:
        """Returns what each pass from ``first`` on will have to do.

        Args:
            first: Place of the pass that will see the graph next.
            model: The graph; it stays as it is.
            context: What the passes will be given.
        """
        forecast, works = Forecast(), []
        for one in self.passes[first:]:
            works.append(one.work(model, context, forecast))
            forecast = one.forecast(forecast)
        return works

    def look_ahead(
        self, first: int, model: ir.Model, context: PassContext
    ) -> tuple[list[Work], Outlook | None]:
        """Returns what the passes from ``first`` on will have to do, and what may come of it.

        Results in the cache count as done. The graph gets the notes that go with them.

        Args:
            first: Place of the pass that will see the graph next.
            model: The graph.
            context: What the passes will be given.
        """
        self.preflight(first, model, context)
        forecast, outlook = Forecast(), None
        for one in self.passes[first:]:
            one.recall(model, context)
            outlook = one.outlook(model, context, forecast) or outlook
            forecast = one.forecast(forecast)
        return self.works(first, model, context), outlook

    def _expected(
        self, first: int, model: ir.Model, context: PassContext
    ) -> tuple[float, ...]:
        """Returns the seconds of every pass on a plain machine; 0 of those that are over."""
        works = self.works(first, model, context)
        return (*(0.0 for _ in range(first)), *(one.seconds() for one in works))

    def preflight(self, index: int, model: ir.Model, context: PassContext) -> None:
        """Lets the passes after ``index`` refuse before the long work begins."""
        if index == len(self.passes):
            return
        forecast = self.passes[index].forecast(Forecast())
        for later in self.passes[index + 1 :]:
            later.preflight(model, context, forecast)
            forecast = later.forecast(forecast)


def _carried(model: ir.Model) -> set[type[Annotation]]:
    """Returns the kinds of annotations that the model or a node of it carries."""
    keys = {*model.metadata_props, *model.graph.metadata_props}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        keys.update(node.metadata_props)
    return {cls for cls in map(class_of, keys) if cls is not None}


def _missing(one: Pass, cls: type[Annotation], dropper: Pass | None) -> UsageError:
    writers = [writer.name for writer in all_passes() if cls in writer.writes]
    lost = f"that {dropper.name} drops" if dropper else "which no earlier pass writes"
    add = f"; add {' or '.join(writers)} before it" if writers else ""
    return UsageError(f"{one.name} reads #{cls.key}, {lost}{add}")


def _after(passes: Sequence[Pass]) -> str:
    return f" (after {print_passes(passes)})" if passes else ""


def _failure(error: Exception, one: Pass, before: Sequence[Pass]) -> MpqcError:
    """Says whose fault an exception is: the machine's when it ran out, otherwise ours."""
    what = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MachineError(
            f"out of memory in pass {one.name}: {what}", hint="use fewer samples"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return MachineError(
            f"no space left in pass {one.name}: {what}", hint="free some space"
        )
    return InternalError(f"pass {one} failed{_after(before)}: {type(error).__name__}: {what}")

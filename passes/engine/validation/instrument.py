"""The instrument that compares the graph before and after every pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from ....ir import Miscompiled
from ..pipeline.base import Pass, PassContext, Promise
from ..pipeline.instruments import Instrument, TimePasses
from .lockstep import CannotRun, Lockstep
from .lowered import Rounded
from .samples import chosen_feeds
from .simulation import Simulated
from .structure import Structure

REPORT = "validation"
_HINT = "this is a bug of mpqc; --no-validate goes on without the check"
Check = Callable[[str, ir.Model], str]


class Validation(Instrument):
    """Holds every pass to its ``Promise``.

    What is checked, by promise: *same graph*, *simulation* and *same codes* by structure,
    to the last bit; *same as the simulation* unit by unit on random inputs; that and *same
    function* also on a few tokens of a sample, block by block in torch, within what
    rounding explains; *same function in fewer digits* within what float16 explains. Graphs
    with operators that torch cannot run are not run; the report says so. What a pass does
    beside the graph (predictions, reports) and the kernels of the target, which round
    activations in their own way, are left to ``verify-numerics``.
    """

    def __init__(self, context: PassContext, timer: TimePasses | None = None) -> None:
        """Prepares to watch one run.

        Args:
            context: What the passes are given.
            timer: Takes down what the checks cost.
        """
        self._context = context
        self._timer = timer
        self._check: Check | None = None

    def before(self, index: int, pass_: Pass, model: ir.Model) -> None:
        self._check = self._prepared(pass_.promised(), model)

    def after(
        self, index: int, pass_: Pass, model: ir.Model, context: PassContext, changed: bool
    ) -> bool:
        if self._check is None:
            return True
        begun = time.perf_counter()
        try:
            said = self._check(pass_.name, model)
        except Miscompiled as error:
            raise Miscompiled(error.message, hint=error.hint or _HINT) from error
        finally:
            self._check = None  # and with it the graph as it was
            if self._timer is not None:
                self._timer.add_validation(index, time.perf_counter() - begun)
        self._report(pass_.name, said)
        return True

    def _report(self, name: str, said: str) -> None:
        report = self._context.report.setdefault(REPORT, {})
        if not isinstance(report, dict):  # of a dump that somebody edited
            report = self._context.report[REPORT] = {}
        if said:
            self._context.progress.say(f"{name} was not validated on samples: {said}")
        report[name] = said or "checked"

    def _prepared(self, promise: Promise, model: ir.Model) -> Check | None:
        """Looks at the graph before a pass; returns what will compare it with the result."""
        arrays = self._context.arrays
        if promise is Promise.SAME_GRAPH:
            return _SameGraph(Structure.of(model))
        if promise in (Promise.SIMULATION, Promise.SAME_CODES):
            same_codes = promise is Promise.SAME_CODES
            simulated = Simulated.of(model, arrays, same_codes=same_codes)
            return _Simulation(simulated, self._context)
        if promise in (Promise.SAME_FUNCTION, Promise.NARROWED):
            narrowed = promise is Promise.NARROWED
            return _SameFunction(model.clone(), self._context, narrowed)
        if promise is Promise.SAME_SIMULATION:
            return _SameSimulation(Rounded.of(model, arrays), self._context)
        return None


@dataclass(frozen=True)
class _SameGraph:
    structure: Structure

    def __call__(self, name: str, model: ir.Model) -> str:
        changed = self.structure.change_to(Structure.of(model))
        if changed:
            raise Miscompiled(f"{name} may only write notes: {changed}")
        return ""


@dataclass(frozen=True)
class _Simulation:
    before: Simulated
    context: PassContext

    def __call__(self, name: str, model: ir.Model) -> str:
        self.before.check(name, model, self.context.arrays, self.context.progress)
        return ""


@dataclass(frozen=True)
class _SameFunction:
    before: ir.Model
    context: PassContext
    narrowed: bool = False

    def __call__(self, name: str, model: ir.Model) -> str:
        """Compares on samples; returns why that could not be done, if it could not."""
        context = self.context
        try:
            lockstep = Lockstep(
                self.before,
                model,
                context.runner,
                narrowed=self.narrowed,
                device=context.device,
            )
            for feeds in chosen_feeds(self.before, context.calibration, context.seed):
                found = lockstep.mismatch(feeds)
                if found is not None:
                    raise Miscompiled(f"{name}: {found}")
        except CannotRun as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class _SameSimulation:
    before: Rounded
    context: PassContext

    def __call__(self, name: str, model: ir.Model) -> str:
        said = self.before.check(name, model, self.context)
        return said or _SameFunction(self.before.model, self.context)(name, model)

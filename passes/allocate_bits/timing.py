"""What an allocation is asked to take in time, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import InfeasibleBudget, Option, Unit, UsageError
from ...ir.workloads import workloads
from ..engine.emission.times import Residence, unit_times
from ..engine.pipeline.base import PassContext
from ..engine.pipeline.chosen_options import one_of
from .clock import Clock
from .plan import Plan, Solve, quickest, within_times, worth_its_loss

_AIMS = ("loss", "latency")
_WORTH = (
    1.02  # of the loss: what being as quick as the original may cost unless it is asked for
)
_EXACTLY = 1e-9
_CLEARLY = 0.8  # of what is refused before calibration
# A slow original and a quick result: what this refuses, no residence allows.
_FAVOURABLE = Residence(original=True, result=False)


@dataclass(frozen=True)
class Timing:
    """The bounds of an allocation beside its bytes.

    Attributes:
        latency: Time of products, at most, relative to the original's; None for 1 as far as a
            percent of time costs at most a percent of the loss.
        aim: ``loss`` for the least loss, ``latency`` for the least time.
        max_loss: Predicted loss, at most.
    """

    latency: float | None = None
    aim: str = "loss"
    max_loss: float | None = None

    def __post_init__(self) -> None:
        one_of(_AIMS, aim=self.aim)
        for name in ("latency", "max_loss"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, not {value:g}")
        if self.aim == "latency" and self.max_loss is None:
            raise UsageError(
                "the least time within the bytes alone costs any quality",
                hint="say what may be lost: max_loss",
            )

    def plan(self, solve: Solve, clock: Clock | None, context: PassContext) -> Plan:
        """Returns the allocation that is asked for.

        Raises:
            InfeasibleBudget: Bytes, time and loss contradict one another.
        """
        if clock is None:
            if self.latency is not None or self.aim == "latency":
                context.progress.say(
                    "no kernel of this model is timed, so its time is not bounded;"
                    " convolutions multiply integers with --activations uint8"
                )
            plan = solve(np.zeros(0))
            self._check_loss(plan)
            return plan
        plan = self._timed(solve, clock)
        self._check_loss(plan)
        self._report(plan, clock, context)
        return plan

    def check_early(
        self, offered: Mapping[Unit, Sequence[Option]], context: PassContext
    ) -> None:
        """Refuses a time that even the quickest options of all units clearly exceed.

        How often a unit runs is not known yet: each is taken to see all tokens.

        Raises:
            InfeasibleBudget: They do.
        """
        costs, samples = context.costs, context.calibration
        if self.latency is None or costs is None or samples is None:
            return
        for run in workloads(samples):
            if run.tokens is None:
                continue
            times = [
                unit_times(unit, options, context.capabilities, costs, run.tokens, _FAVOURABLE)
                for unit, options in offered.items()
            ]
            least = sum(one.quickest(unit) for one, unit in zip(times, offered, strict=True))
            original = sum(one.original for one in times)
            if least * _CLEARLY > self.latency * original:
                raise InfeasibleBudget(
                    f"a {run.name} takes at least {least / original:.3f} times the original's"
                    f" time with any options, not {self.latency:g}, by the table {costs.name}",
                    hint=f"ask for --latency {least / original:.3f} or more",
                )

    def _timed(self, solve: Solve, clock: Clock) -> Plan:
        original = clock.original
        limits = original * (self.latency or 1.0)
        free = solve(np.zeros(len(original)))
        if self.aim == "latency":
            assert self.max_loss is not None
            plan = quickest(solve, free, self.max_loss, original)
        elif self.latency is not None:
            plan = within_times(solve, free, limits, original)
        else:
            return worth_its_loss(solve, free, limits)
        self._check_times(plan, clock)
        return plan

    def _check_times(self, plan: Plan, clock: Clock) -> None:
        if self.latency is None:
            return
        ratios = plan.times / clock.original
        worst = int(ratios.argmax())
        if ratios[worst] <= self.latency * (1 + _EXACTLY):
            return
        least, run = np.ceil(ratios[worst] * 1000) / 1000, clock.workloads[worst]
        raise InfeasibleBudget(
            f"within these bytes a {run.name} takes at least {least:g} times"
            f" the original's time, not {self.latency:g}, by the table {clock.costs.name}",
            hint=f"ask for --latency {least:g} or more, or for a larger budget",
        )

    def _check_loss(self, plan: Plan) -> None:
        if self.max_loss is None or plan.loss <= self.max_loss * (1 + _EXACTLY):
            return
        bounds = "these bytes and this time" if self.latency is not None else "these bytes"
        raise InfeasibleBudget(
            f"within {bounds} at least {plan.loss:.4g} is lost, as predicted, not"
            f" {self.max_loss:.4g}",
            hint=f"ask for --max-loss {plan.loss * 1.001:.4g} or more, or for larger bounds",
        )

    def _report(self, plan: Plan, clock: Clock, context: PassContext) -> None:
        machine = clock.costs.machine
        facts: dict[str, Any] = {
            "costs": clock.costs.name,
            "processor": machine.processor,
            "threads": machine.threads,
        }
        pairs = zip(clock.workloads, plan.times, clock.original, strict=True)
        facts["products"] = {
            run.name: {
                "microseconds": round(float(own), 3),
                "original": round(float(before), 3),
            }
            for run, own, before in pairs
        }
        context.report.setdefault("allocate-bits", {})["time"] = facts
        for run, own, before in zip(clock.workloads, plan.times, clock.original, strict=True):
            if own > before * (1 + _EXACTLY) and self.latency is None and self.aim == "loss":
                context.progress.say(
                    f"products of a {run.name} are predicted to take {own / before:.2f} times"
                    " the original's; a percent less costs more than a percent of quality"
                )

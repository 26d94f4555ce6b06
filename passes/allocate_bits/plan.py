"""An allocation of all units, and the search for one that is quick enough.

Time has a price, in loss for a microsecond, one for each workload. At given prices the
allocation inside the budget is the one of least loss and toll; the dearer time is, the quicker
and the worse it gets. The search looks for the least prices that meet a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .decision import Candidate, Decision, total_loss

Solve = Callable[[np.ndarray], "Plan"]
_FIRST = 0.03  # price at which the time of the original is worth so much of the loss
_STRIDE = 4.0  # by which prices rise in search of a bound
_MOST = 1e4
_STEPS = 5  # of the bisection that follows
_MOST_SOLVES = 12
_CLOSE = 1.1
_LEAST = 1e-4
_ROUNDS = 3  # over the workloads: what one gains another may lose


@dataclass(frozen=True)
class Plan:
    """An allocation.

    Attributes:
        decisions: What units got.
        candidates: The units, with the input channels that stay in 16 bits.
        times: Microseconds by workload; empty where nothing is known of them.
    """

    decisions: Sequence[Decision]
    candidates: Sequence[Candidate]
    times: np.ndarray

    @property
    def loss(self) -> float:
        """The predicted loss."""
        return total_loss(self.decisions)


def within_times(solve: Solve, free: Plan, limits: np.ndarray, original: np.ndarray) -> Plan:
    """Returns the plan of least loss whose times are within limits.

    Args:
        solve: Makes a plan at given prices.
        free: That at no prices.
        limits: Microseconds by workload.
        original: What the original takes.

    Returns:
        The plan; where there is none, the quickest that was found.
    """
    plan, unit, prices = free, free.loss / original, np.zeros(len(limits))
    for _ in range(_ROUNDS):
        for at in range(len(limits)):
            if plan.times[at] > limits[at]:
                plan, prices = _raised(solve, plan, prices, at, limits[at], unit)
        if (plan.times <= limits).all():
            break
    return plan


def _raised(
    solve: Solve, plan: Plan, prices: np.ndarray, at: int, limit: float, unit: np.ndarray
) -> tuple[Plan, np.ndarray]:
    """Raises the price of one workload until its limit is met; returns plan and prices."""

    def at_price(price: float) -> tuple[Plan, np.ndarray]:
        new = prices.copy()
        new[at] = price
        return solve(new), new

    low = max(prices[at], unit[at] * _LEAST)
    high = max(low * _STRIDE, unit[at] * _FIRST)
    while (found := at_price(high))[0].times[at] > limit:
        if high >= unit[at] * _MOST:
            return found
        low, high = high, high * _STRIDE
    for _ in range(_STEPS):
        middle = float(np.sqrt(low * high))
        tried = at_price(middle)
        if tried[0].times[at] <= limit:
            high, found = middle, tried
        else:
            low = middle
    return found


def worth_its_loss(solve: Solve, free: Plan, limits: np.ndarray) -> Plan:
    """Returns the plan that is as quick as the limits, or as far as that is worth the loss.

    Where a workload is too slow, a percent of its time may cost a percent of the loss.

    Args:
        solve: Makes a plan at given prices.
        free: That at no prices.
        limits: Microseconds by workload.
    """
    slow = free.times > limits
    if not slow.any():
        return free
    even = np.where(slow, free.loss / np.maximum(free.times, _LEAST), 0.0)
    best = solve(even)
    if (best.times > limits).any():
        return best
    low, high = _LEAST, 1.0
    for _ in range(_STEPS):
        middle = float(np.sqrt(low * high))
        if ((plan := solve(even * middle)).times <= limits).all():
            best, high = plan, middle
        else:
            low = middle
    return best


def quickest(solve: Solve, free: Plan, most_loss: float, original: np.ndarray) -> Plan:
    """Returns the plan of least time whose loss is within a limit.

    The sum of the times counts, each relative to that of the original.

    Args:
        solve: Makes a plan at given prices.
        free: That at no prices.
        most_loss: The limit.
        original: What the original takes, in microseconds by workload.
    """
    best, unit = free, free.loss / original
    low, high, failed = 0.0, _FIRST, False
    for _ in range(_MOST_SOLVES):
        plan = solve(unit * high)
        if plan.loss > most_loss:
            failed, above = True, high
        else:
            best, low = plan, high
            if high >= _MOST:
                break
        if not failed:
            high *= _STRIDE
        elif above < max(low, _LEAST) * _CLOSE:
            break
        else:
            high = float(np.sqrt(max(low, above / _STRIDE**2) * above))
    return best

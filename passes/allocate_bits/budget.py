"""Least loss inside the budget: the knapsack over tiles of rows, with shared orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import ArrayStore, SharedOrder, Unit, UsageError, find_shared_orders
from ..engine.numerics.joint_knapsack import Joint
from ..engine.numerics.knapsack import Choice, allocate
from ..engine.pipeline.chosen_options import one_of
from .decision import Candidate, Decision
from .method import Asked
from .regrouping import regrouped_error
from .timing import Timing

_MOST_GROWTH = 1.1  # of a reader's error: beyond this its columns had better stay


@dataclass(frozen=True)
class Settings:
    """Options of ``budget``.

    Attributes:
        granularity: ``row`` decides tiles of rows, ``unit`` whole units.
        fold: Whether units whose output channels may move share one order of rows.
        latency: Time of the products, at most, relative to the original's.
        aim: ``loss`` for the least loss, ``latency`` for the least time.
        max_loss: Predicted loss, at most.
    """

    granularity: str = "row"
    fold: bool = False
    latency: float | None = None
    aim: str = "loss"
    max_loss: float | None = None

    def __post_init__(self) -> None:
        one_of(("row", "unit"), granularity=self.granularity)
        _ = self.timing  # checks its values
        if self.fold and self.granularity == "unit":
            raise UsageError(
                "whole units have no rows to put in a shared order", hint="say fold=false"
            )

    @property
    def timing(self) -> Timing:
        """The bounds beside the bytes."""
        return Timing(self.latency, self.aim, self.max_loss)


@dataclass(frozen=True)
class _Question:
    """One or more units to decide together.

    Attributes:
        candidates: The units.
        joint: How they look to the knapsack.
        group: Why they are together. None for a unit on its own.
    """

    candidates: tuple[Candidate, ...]
    joint: Joint
    group: SharedOrder | None

    def answer(self, choice: Choice) -> Decision:
        units = tuple(one.unit for one in self.candidates)
        return Decision(units, tuple(self.joint.split(choice)), choice.option, self.group)


def decide(asked: Asked[Settings]) -> list[Decision]:
    """Allocates, without the groups that turn out to do harm."""
    groups = _groups(asked)
    while True:
        decisions = _solve(asked, groups)
        harmless = _harmless(decisions, asked)
        if len(harmless) == len(groups):
            return decisions
        asked.harmful.update({one.name for one in groups} - {one.name for one in harmless})
        groups = harmless


def _groups(asked: Asked[Settings]) -> list[SharedOrder]:
    """Returns the shared orders that rows with different options may use."""
    if not asked.settings.fold:
        return []
    free = {one.unit.name for one in asked.candidates if one.item.tile}
    found = list(find_shared_orders(asked.model).found)
    found = [one for one in found if {unit.name for unit in one.producers} <= free]
    return [one for one in found if one.name not in asked.harmful]


def _solve(asked: Asked[Settings], groups: Sequence[SharedOrder]) -> list[Decision]:
    """Returns the best decisions that fit, or the smallest ones when none do."""
    assert asked.budget is not None
    questions = _questions(asked.candidates, groups)
    choices = allocate([one.joint.item for one in questions], asked.budget, asked.tried)
    if choices is None:
        return [Decision.whole(one, 0) for one in asked.candidates]
    return [one.answer(choice) for one, choice in zip(questions, choices, strict=True)]


def _questions(
    candidates: Sequence[Candidate], groups: Sequence[SharedOrder]
) -> list[_Question]:
    """Returns the units that are decided together: the producers of a group, others alone."""
    by_unit = {one.unit.name: one for one in candidates}
    by_name = {unit.name: group for group in groups for unit in group.producers}
    questions: dict[str, _Question] = {}
    for candidate in candidates:
        group = by_name.get(candidate.unit.name)
        if group is None:
            joint = Joint.alone(candidate.item)
            questions[candidate.unit.name] = _Question((candidate,), joint, None)
        elif group.name not in questions:
            members = tuple(by_unit[unit.name] for unit in group.producers)
            joint = Joint.of([one.item for one in members])
            questions[group.name] = _Question(members, joint, group)
    return list(questions.values())


def _harmless(decisions: Sequence[Decision], asked: Asked[Settings]) -> list[SharedOrder]:
    """Returns the groups whose order does not spoil the rounding of those that read it."""
    chosen = {
        unit.name: int(np.bincount(choice.option).argmax())
        for one in decisions
        for unit, choice in zip(one.units, one.choices, strict=True)
    }
    by_unit = {one.unit.name: one for one in asked.candidates}

    def growth(unit: Unit, order: np.ndarray, arrays: ArrayStore) -> float:
        if unit.name not in by_unit:
            return 1.0
        candidate = by_unit[unit.name]
        option = candidate.options[chosen[unit.name]]
        if option.is_half:
            return 1.0
        return regrouped_error(unit, order, option, candidate.outlier_columns(arrays), arrays)

    def is_harmless(group: SharedOrder, places: np.ndarray) -> bool:
        order = np.argsort(places, kind="stable")
        return bool((np.diff(order) == 1).all()) or all(
            growth(unit, order, asked.context.arrays) <= _MOST_GROWTH
            for unit in group.consumers
        )

    return [
        one.group
        for one in decisions
        if one.group is not None and is_harmless(one.group, one.places)
    ]

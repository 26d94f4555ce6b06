"""The allocator against brute force, against scipy's exact solver, and at its edges."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from mpqc.passes.engine.numerics.knapsack import Choice, Item, allocate, smallest_bytes

FEW = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 10_000)


def item(
    seed: int, rows: int, tile: int, *, mixing: int = 0, sizes: tuple[int, ...] = (18, 34, 66)
) -> Item:
    """Rows that differ a lot, each with a loss that falls as its bytes grow."""
    rng = np.random.default_rng(seed)
    first = 10.0 ** rng.uniform(-3, 0, (rows, 1))
    falls = np.cumprod(rng.uniform(0.01, 0.6, (rows, len(sizes) - 1)), axis=1)
    loss = first * np.concatenate([np.ones((rows, 1)), falls], axis=1)
    return Item(loss.astype(np.float32), np.array(sizes), mixing, tile)


def largest_bytes(items: list[Item]) -> int:
    return sum(int(one.row_bytes.max()) * len(one.loss) + one.mixing_bytes for one in items)


def check(items: list[Item], choices: list[Choice], budget: int) -> None:
    """Bytes and losses are what the options say, and they fit."""
    for one, choice in zip(items, choices, strict=True):
        rows = np.arange(len(one.loss))
        mixed = np.unique(choice.option).size > 1
        size = one.row_bytes[choice.option].sum() + (one.mixing_bytes if mixed else 0)
        assert choice.bytes == size
        loss = one.loss[rows, choice.option].sum(dtype=np.float64)
        assert choice.loss == pytest.approx(loss, rel=1e-6)
    assert sum(choice.bytes for choice in choices) <= budget


def exact(items: list[Item], budget: int) -> float:
    """Least loss with every row for itself, by branch and bound."""
    loss = np.concatenate([one.loss.astype(np.float64).ravel() for one in items])
    size = np.concatenate([np.tile(one.row_bytes, len(one.loss)) for one in items])
    picks: list[np.ndarray] = []
    for one in items:
        options = len(one.row_bytes)
        for _ in range(len(one.loss)):
            row = np.zeros(len(loss))
            start = len(picks) and int(np.flatnonzero(picks[-1])[-1]) + 1
            row[start : start + options] = 1
            picks.append(row)
    found = milp(
        loss,
        constraints=[
            LinearConstraint(np.array(picks), 1, 1),
            LinearConstraint(size, 0, budget),
        ],
        integrality=np.ones(len(loss)),
        bounds=Bounds(0, 1),
    )
    assert found.success
    return float(found.fun)


@FEW
@given(seed=SEEDS, share=st.floats(0, 1.1), mixing=st.integers(0, 200))
def test_budget_is_never_exceeded(seed: int, share: float, mixing: int) -> None:
    items = [
        item(seed, 40, 8, mixing=mixing),
        item(seed + 1, 19, 0),
        item(seed + 2, 33, 8, mixing=mixing, sizes=(10, 20)),
    ]
    least = smallest_bytes(items)
    budget = least + int((largest_bytes(items) - least) * share)
    choices = allocate(items, budget)
    assert choices is not None
    check(items, choices, budget)


@FEW
@given(seed=SEEDS, share=st.floats(0.05, 0.95))
def test_single_rows_come_within_one_move_of_the_optimum(seed: int, share: float) -> None:
    items = [item(seed, 12, 1), item(seed + 1, 9, 1)]
    least, most = smallest_bytes(items), largest_bytes(items)
    budget = least + int((most - least) * share)
    choices = allocate(items, budget)
    assert choices is not None
    found, best = sum(choice.loss for choice in choices), exact(items, budget)
    assert best <= found * (1 + 1e-6)
    # The hull's vertex below the budget misses at most what one row gains.
    gap = max(float((one.loss[:, 0] - one.loss[:, -1]).max()) for one in items)
    assert found <= best + gap


@FEW
@given(seed=SEEDS, share=st.floats(0.05, 0.95))
def test_whole_units_against_brute_force(seed: int, share: float) -> None:
    items = [item(seed + at, 5 + at, 0) for at in range(4)]
    least, most = smallest_bytes(items), largest_bytes(items)
    budget = least + int((most - least) * share)
    choices = allocate(items, budget)
    assert choices is not None
    totals = [one.loss.sum(0, dtype=np.float64) for one in items]
    sizes = [one.row_bytes * len(one.loss) for one in items]
    best = min(
        sum(loss[at] for loss, at in zip(totals, picks, strict=True))
        for picks in product(range(3), repeat=4)
        if sum(size[at] for size, at in zip(sizes, picks, strict=True)) <= budget
    )
    found = sum(choice.loss for choice in choices)
    assert best <= found * (1 + 1e-6)
    assert found <= best + max(float(total[0] - total[-1]) for total in totals)


@FEW
@given(seed=SEEDS, share=st.floats(0.0, 0.98))
def test_nothing_that_still_fits_is_left_undone(seed: int, share: float) -> None:
    items = [item(seed, 24, 4), item(seed + 1, 16, 4)]
    least, most = smallest_bytes(items), largest_bytes(items)
    budget = least + int((most - least) * share)
    choices = allocate(items, budget)
    assert choices is not None
    left = budget - sum(choice.bytes for choice in choices)
    if any((choice.option != 2).any() for choice in choices):
        assert left < 4 * (66 - 18), "a whole step of a tile was left over"


def test_more_budget_never_hurts() -> None:
    items = [item(1, 64, 8, mixing=50), item(2, 32, 8, mixing=50)]
    least, most = smallest_bytes(items), largest_bytes(items)
    losses = []
    for budget in range(least, most + 1, 97):
        choices = allocate(items, budget)
        assert choices is not None
        losses.append(sum(choice.loss for choice in choices))
    assert losses[-1] < losses[0] / 2
    assert all(after <= before * 1.02 for before, after in pairwise(losses))


def test_too_small_is_none_and_smallest_is_enough() -> None:
    items = [item(3, 16, 8, mixing=30), item(4, 10, 0)]
    least = smallest_bytes(items)
    assert allocate(items, least - 1) is None
    choices = allocate(items, least)
    assert choices is not None
    check(items, choices, least)
    assert all(not choice.option.any() for choice in choices)


def test_everything_fits() -> None:
    items = [item(5, 16, 8, mixing=30), item(6, 10, 0)]
    choices = allocate(items, largest_bytes(items) * 2)
    assert choices is not None
    assert all((choice.option == 2).all() for choice in choices)


@pytest.mark.parametrize("rows", [8, 9, 15, 16, 17, 31, 40])
def test_classes_are_whole_tiles(rows: int) -> None:
    """Every class but the one that takes the odd rest has a multiple of the tile."""
    one = item(rows, rows, 8)
    for budget in range(rows * 18, rows * 66, 53):
        choices = allocate([one], budget)
        assert choices is not None
        counts = np.bincount(choices[0].option, minlength=3)
        assert sum(count % 8 != 0 for count in counts) <= (rows % 8 != 0)


def test_rows_that_gain_most_get_the_bits() -> None:
    one = item(7, 64, 8)
    choices = allocate([one], 64 * 40)
    assert choices is not None
    gain = one.loss[:, 0] - one.loss[:, -1]
    option = choices[0].option
    assert gain[option == 2].min() > gain[option == 0].max()


def test_mixing_has_to_pay_for_itself() -> None:
    cheap, dear = item(8, 32, 8, mixing=1), item(8, 32, 8, mixing=10_000)
    for one, mixes in ((cheap, True), (dear, False)):
        choices = allocate([one], 32 * 34)
        assert choices is not None
        assert (np.unique(choices[0].option).size > 1) == mixes


def test_equal_input_gives_equal_output() -> None:
    items = [Item(np.ones((32, 3), np.float32), np.array([18, 34, 66]), 10, 8)] * 3
    first, second = (allocate(items, 32 * 3 * 40) for _ in range(2))
    assert first is not None
    assert second is not None
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.option, other.option)

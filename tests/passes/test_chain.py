from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from mpqc.passes.engine.numerics.joint_knapsack import Joint
from mpqc.passes.engine.numerics.knapsack import Item, allocate

SEEDS = range(12)


def item(rng: np.random.Generator, rows: int, options: int, tile: int = 1) -> Item:
    """A unit whose rows lose less and less with more bytes."""
    loss = rng.gamma(0.5, size=(rows, 1)) * np.sort(rng.random((rows, options)))[:, ::-1]
    row_bytes = np.cumsum(rng.integers(1, 9, options))
    return Item(loss.astype(np.float32), row_bytes, 2 * rows, tile)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_option_gets_smaller_along_the_chain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = [item(rng, 16, int(rng.integers(1, 5))) for _ in range(int(rng.integers(1, 4)))]
    path = Joint.of(items).path
    sizes = [len(one.row_bytes) for one in items]
    assert path[0].tolist() == [0] * len(items)
    assert path[-1].tolist() == [size - 1 for size in sizes]
    assert (np.diff(path, axis=0).sum(axis=1) == 1).all()
    assert (np.diff(path, axis=0) >= 0).all()


def test_the_unit_that_gains_most_for_its_bytes_goes_first() -> None:
    sizes = np.array([1, 2, 3])
    small = Item(np.array([[3.0, 2.0, 1.9]]), sizes, 2, 1)
    large = Item(np.array([[9.0, 4.0, 2.0]]), sizes, 2, 1)
    path = Joint.of([small, large]).path
    assert path.tolist() == [[0, 0], [0, 1], [0, 2], [1, 2], [2, 2]]


def test_a_small_step_in_front_of_a_large_one_holds_no_unit_back() -> None:
    sizes = np.array([10, 11, 20, 21, 40])
    patient = Item(np.array([[9.0, 8.9, 2.0, 1.9, 0.0]]), sizes, 2, 1)
    hasty = Item(np.array([[9.0, 8.0, 2.0, 1.8, 0.0]]), sizes, 2, 1)
    path = Joint.of([patient, hasty]).path.tolist()
    assert path.index([2, 2]) < min(path.index([4, k]) for k in range(5) if [4, k] in path)
    assert [4, 0] not in path
    assert [0, 4] not in path


def test_a_single_unit_keeps_its_options() -> None:
    only = item(np.random.default_rng(0), 16, 3)
    assert Joint.alone(only).item is only
    joint = Joint.of([only])
    assert joint.item.mixing_bytes == 0
    np.testing.assert_array_equal(joint.item.loss, only.loss)
    (choice,) = allocate([joint.item], 150) or []
    assert joint.split(choice) == [choice]


@pytest.mark.parametrize("seed", SEEDS)
def test_one_order_sorts_the_rows_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = [item(rng, 32, 3, tile=4) for _ in range(2)]
    joint, alone = Joint.of(items), item(rng, 24, 3, tile=4)
    smallest = sum(int(one.row_bytes[0]) * len(one.loss) for one in (*items, alone))
    budget = int(smallest * rng.uniform(1.1, 2.5))
    choices = allocate([joint.item, alone], budget)
    assert choices is not None
    assert sum(choice.bytes for choice in choices) <= budget
    order = np.argsort(choices[0].option, kind="stable")
    parts = joint.split(choices[0])
    assert sum(part.bytes for part in parts) == choices[0].bytes
    assert sum(part.loss for part in parts) == pytest.approx(choices[0].loss)
    for part, one in zip(parts, items, strict=True):
        assert (np.diff(part.option[order]) >= 0).all()
        assert part.bytes == one.row_bytes[part.option].sum()
        assert (np.bincount(part.option) % 4 == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_choice_along_the_chain_beats_it_by_more_than_a_tile(seed: int) -> None:
    rng = np.random.default_rng(seed)
    joint = Joint.of([item(rng, 6, 2), item(rng, 6, 2)])
    whole = joint.item
    smallest = int(whole.row_bytes[0]) * 6
    largest = int(whole.row_bytes[-1]) * 6
    budget = int(rng.integers(smallest, largest + 1))
    (choice,) = allocate([whole], budget) or []
    rows = np.arange(6)
    best = min(
        whole.loss[rows, list(options)].sum()
        for options in product(range(len(whole.row_bytes)), repeat=6)
        if whole.row_bytes[list(options)].sum() <= budget
    )
    one_tile = (whole.loss[:, 0] - whole.loss[:, -1]).max()
    assert best - 1e-9 <= choice.loss <= best + one_tile

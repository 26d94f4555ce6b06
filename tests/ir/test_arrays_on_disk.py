"""Large arrays of the store are mapped from files that nobody sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpqc.ir import ArrayStore, MachineError


def test_a_large_array_is_mapped_and_its_file_gone(tmp_path: Path) -> None:
    store, large = ArrayStore(tmp_path / "scratch"), np.arange(1 << 18, dtype=np.int64)
    store.put("large", large)
    store.put("small", large[:10])
    assert isinstance(store.get("large"), np.memmap)
    assert not isinstance(store.get("small"), np.memmap)
    assert list((tmp_path / "scratch").iterdir()) == []
    np.testing.assert_array_equal(store.get("large"), large)
    assert set(store.in_memory()) == {"large", "small"}


def test_what_is_put_again_replaces_what_was(tmp_path: Path) -> None:
    store, large = ArrayStore(tmp_path / "scratch"), np.zeros(1 << 20, np.int8)
    store.put("codes", large)
    earlier = store.get("codes")
    store.put("codes", large + 1)
    assert earlier.sum() == 0
    assert store.get("codes").min() == 1


def test_no_room_for_large_arrays_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = ArrayStore(tmp_path / "file/scratch")
    with pytest.raises(MachineError, match="cannot"):
        store.put("large", np.zeros(1 << 20, np.int8))

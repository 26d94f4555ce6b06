from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mpqc.ir import ArrayStore, CachedFile, MachineError
from mpqc.ir.sealed_file import sealing

ARRAYS = {"x": np.arange(6, dtype=np.float32)}


def silent(line: str) -> None:
    pytest.fail(f"nothing is to be said, but: {line}")


def test_names_follow_from_what_the_content_depends_on(tmp_path: Path) -> None:
    file = CachedFile.of(tmp_path / "new/cache", "model", 3)
    assert file == CachedFile.of(tmp_path / "new/cache", "model", 3)
    assert file != CachedFile.of(tmp_path / "new/cache", "model", 4)
    assert file.path == tmp_path / "new/cache" / f"{file.key}.safetensors"


def test_what_was_written_is_used_again(tmp_path: Path) -> None:
    file = CachedFile.of(tmp_path, "model")
    assert file.facts(silent) is None
    file.write(ARRAYS, {"count": 6})
    assert file.facts(silent) == {"count": 6}
    store = ArrayStore()
    store.mount(file.path)
    np.testing.assert_array_equal(store.get("x"), ARRAYS["x"])


def test_a_damaged_file_is_thrown_away_and_said(tmp_path: Path) -> None:
    file, said = CachedFile.of(tmp_path, "model"), list[str]()
    file.write(ARRAYS, {})
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-24] + bytes(24))
    assert file.facts(said.append) is None
    assert list(tmp_path.iterdir()) == []
    (line,) = said
    assert str(file.path) in line
    assert "checksum" in line
    file.write(ARRAYS, {})
    assert file.facts(silent) == {}


def test_a_file_of_something_else_is_not_used(tmp_path: Path) -> None:
    file, other, said = CachedFile.of(tmp_path, 1), CachedFile.of(tmp_path, 2), list[str]()
    other.write(ARRAYS, {})
    os.rename(other.path, file.path)
    assert file.facts(said.append) is None
    assert "made for something else" in said[0]


def test_two_writers_with_one_process_number_do_not_meet(tmp_path: Path) -> None:
    """Containers that share a cache have the same numbers, as these two here."""
    file = CachedFile.of(tmp_path, "model")
    layout = {"x": ((4,), np.float32)}
    with (
        sealing(file.path, file.key, layout) as first,
        sealing(file.path, file.key, layout) as second,
    ):
        first.array("x")[...] = 1
        second.array("x")[...] = 1
    assert file.facts(silent) == {}
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_mounted_file_that_vanishes_is_named(tmp_path: Path) -> None:
    file, store = CachedFile.of(tmp_path, "model"), ArrayStore()
    file.write(ARRAYS, {})
    store.mount(file.path)
    file.path.unlink()
    with pytest.raises(MachineError, match=file.key):
        store.get("x")


def test_a_folder_that_cannot_be_made_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError) as caught:
        CachedFile.of(tmp_path / "file/cache", "model")
    assert "MPQC_CACHE" in caught.value.hint

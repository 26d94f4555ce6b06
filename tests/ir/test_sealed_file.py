from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mpqc.ir import InputError, sealed_file
from mpqc.ir.sealed_file import read_seal, sealing, write_sealed

RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "wide": RNG.standard_normal((5, 7)),
    "float": RNG.standard_normal((3, 1, 2)).astype(np.float32),
    "half": RNG.standard_normal(9).astype(np.float16),
    "signed": np.arange(-3, 4, dtype=np.int8),
    "ids": np.arange(4, dtype=np.int64),
    "mask": np.array([True, False, True]),
    "one": np.array(3, np.int32),
    "none": np.zeros((0, 4), np.float32),
    'a "checksum": "00000000" as a name': np.ones(3, np.float32)[::-1],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "a.safetensors", "the key", ARRAYS, {"count": 3})
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read(path: Path) -> None:
    seal = read_seal(path)
    assert (seal.key, seal.facts) == ("the key", {"count": 3})
    found = load_file(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_the_same_content_gives_the_same_bytes(path: Path) -> None:
    before = path.read_bytes()
    write_sealed(path, "the key", ARRAYS, {"count": 3})
    assert path.read_bytes() == before


def test_arrays_can_be_filled_in_place(tmp_path: Path) -> None:
    with sealing(tmp_path / "a", "key", {"sum": ((2, 3), np.float32)}) as file:
        file.array("sum")[...] += 1
        file.array("sum")[1] += 1
        file.facts = {"late": True}
    assert read_seal(tmp_path / "a").facts == {"late": True}
    found = load_file(tmp_path / "a")
    np.testing.assert_array_equal(found["sum"], [[1, 1, 1], [2, 2, 2]])


def test_every_flipped_bit_is_found(path: Path) -> None:
    content = path.read_bytes()
    header = len(content[8:].split(b"  ", 1)[0]) + 8  # up to the blanks
    start = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, header, 7), header + 100, *range(start, len(content), 5)]
    for place in places:
        bit = 1 << (place % 8)
        path.write_bytes(
            content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
        )
        with pytest.raises(InputError):
            read_seal(path)
    path.write_bytes(content)
    assert read_seal(path).key == "the key"


def test_files_cut_short_zeroed_or_foreign_are_refused(path: Path) -> None:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    bad = [
        b"",
        b"\0" * len(content),
        b"\xff" * 100,
        content[:5],
        content[: start - 1],
        content[:start] + bytes(len(content) - start),
        content[:-1],
        content + b"\0",
    ]
    for one in bad:
        path.write_bytes(one)
        with pytest.raises(InputError, match="damaged"):
            read_seal(path)
    save_file({"x": np.zeros(3)}, path, metadata={"key": "the key"})
    with pytest.raises(InputError, match="no checksum"):
        read_seal(path)
    with pytest.raises(InputError, match="cannot read"):
        read_seal(path.parent)


def test_a_file_is_checked_once_unless_it_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_file, "_verified", {})
    real, checked = sealed_file._checked, []

    def counted(file: object) -> object:
        checked.append(file)
        return real(file)  # type: ignore[arg-type]

    monkeypatch.setattr(sealed_file, "_checked", counted)
    read_seal(path)
    read_seal(path)
    assert len(checked) == 1
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError):
        read_seal(path)
    assert len(checked) == 2


def test_a_failure_keeps_the_old_file_and_leaves_nothing(path: Path) -> None:
    before = path.read_bytes()
    with (
        pytest.raises(KeyError),
        sealing(path, "key", {"x": ((4,), np.float32)}) as file,
    ):
        file.array("y")[...] = 1
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


FULL = """
import os, subprocess, sys
import numpy as np
from pathlib import Path
from mpqc.ir.sealed_file import sealing
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
try:
    with sealing(folder / "a", "key", {"x": ((1 << 20,), np.float32)}) as file:
        file.array("x")[...] = 1
except OSError as error:
    print(error.strerror, os.listdir(folder))
"""


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    """Writing to a mapped file that has no room on the disk ends in SIGBUS."""
    may_mount = ["unshare", "-rm"]
    if not shutil.which("unshare") or subprocess.run([*may_mount, "true"]).returncode:
        pytest.skip("this system lets nobody mount file systems of their own")
    command = [*may_mount, sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "No space left on device []\n"), done.stderr


def test_space_is_taken_before_anything_is_computed(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, before[1]))
    try:
        with (
            pytest.raises(OSError, match="too large"),
            sealing(tmp_path / "a", "key", {"x": ((1 << 20,), np.float32)}),
        ):
            pytest.fail("the block must not run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []

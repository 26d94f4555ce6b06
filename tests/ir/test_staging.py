from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mpqc.ir import ArrayStore, MachineError, UsageError, refuse_overlap, staged_folder

Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "out [1]"
    folder.mkdir()
    (folder / "model.onnx").write_text("old")
    return folder


def test_a_new_folder_appears_with_its_parents(tmp_path: Path) -> None:
    output = tmp_path / "a/b/out"
    with staged_folder(output, overwrite=False) as stage:
        (stage / "sub").mkdir()
        (stage / "sub/file").write_text("new")
        assert not output.exists()
    assert tree(output) == {"sub": "", "sub/file": "new"}
    assert sorted(tree(tmp_path)) == ["a", "a/b", "a/b/out", "a/b/out/sub", "a/b/out/sub/file"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out", overwrite=False) as stage:
        (stage / "file").write_text("new")
    assert tree(tmp_path) == {"out": "", "out/file": "new"}


def test_a_full_folder_is_refused_before_any_work(old: Path) -> None:
    with (
        pytest.raises(UsageError, match="not empty") as caught,
        staged_folder(old, overwrite=False),
    ):
        pytest.fail("the block must not run")
    assert "--overwrite" in caught.value.hint
    with pytest.raises(UsageError), staged_folder(old / "model.onnx", overwrite=True):
        pytest.fail("the block must not run")


def test_overwrite_replaces_the_whole_folder(old: Path) -> None:
    with staged_folder(old, overwrite=True) as stage:
        (stage / "other").write_text("new")
    assert tree(old.parent) == {"out [1]": "", "out [1]/other": "new"}


def test_a_link_keeps_pointing_to_the_replaced_folder(old: Path) -> None:
    link = old.parent / "link"
    link.symlink_to(old)
    with staged_folder(link, overwrite=True) as stage:
        (stage / "other").write_text("new")
    assert link.is_symlink()
    assert tree(old) == {"other": "new"}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, SystemExit, MemoryError])
def test_any_failure_leaves_the_old_folder_and_no_rest(
    old: Path, kind: type[BaseException]
) -> None:
    def fail() -> None:
        with staged_folder(old, overwrite=True) as stage:
            (stage / "other").write_text("new")
            raise kind

    with pytest.raises(kind):
        fail()
    assert tree(old.parent) == {"out [1]": "", "out [1]/model.onnx": "old"}


def test_a_failing_rename_restores_the_old_folder(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeyboardInterrupt), staged_folder(old, overwrite=True):
        pass
    assert tree(old.parent) == {"out [1]": "", "out [1]/model.onnx": "old"}


def fill(output: Path, writer: str) -> None:
    with staged_folder(output, overwrite=True) as stage:
        if writer == "open":
            (stage / "file").write_bytes(bytes(5000))
        else:
            arrays = ArrayStore()
            arrays.put("a", np.zeros(5000, np.float32))
            arrays.save(stage / "file")


@pytest.mark.parametrize("writer", ["open", "safetensors"])
def test_a_full_disk_is_the_machines_fault(old: Path, writer: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MachineError) as caught:
            fill(old, writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.hint
    assert tree(old.parent) == {"out [1]": "", "out [1]/model.onnx": "old"}


def test_a_place_below_a_file_is_refused(old: Path) -> None:
    with (
        pytest.raises(MachineError),
        staged_folder(old / "model.onnx/out", overwrite=False),
    ):
        pytest.fail("the block must not run")


def test_errors_about_other_places_pass_through(old: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(old, overwrite=True):
        Path("/nowhere/at/all").read_text()


SCRIPT = """
import sys, time
from pathlib import Path
from mpqc.ir import staged_folder
for turn in range(10**6):
    with staged_folder(Path(sys.argv[1]), overwrite=True) as stage:
        for name in "abc":
            (stage / name).write_text(str(turn))
"""


def test_kill_at_any_moment_leaves_a_whole_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for turn in range(8):
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(output)], env=os.environ)
        while not output.exists() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(0.02 + 0.013 * turn)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with pytest.raises(ZeroDivisionError), staged_folder(output, overwrite=True):
            raise ZeroDivisionError  # the next run cleans up, and this one changes nothing
        contents = tree(output)
        assert sorted(contents) == ["a", "b", "c"]
        assert len(set(contents.values())) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stage_is_cleaned_although_the_number_of_its_process_is_in_use(old: Path) -> None:
    stage = old.with_name(f".{old.name}.mpqc-stage")
    (stage / "scratch").mkdir(parents=True)
    (stage / ".lock").write_text(str(os.getpid()))
    os.rename(old, stage / "old")  # killed between the two renames
    with pytest.raises(ZeroDivisionError), staged_folder(old, overwrite=True):
        raise ZeroDivisionError
    assert tree(old.parent) == {"out [1]": "", "out [1]/model.onnx": "old"}


def test_the_second_of_two_writers_is_refused_at_once(old: Path) -> None:
    with staged_folder(old, overwrite=True) as stage:
        (stage / "other").write_text("new")
        with (
            pytest.raises(UsageError, match="another process"),
            staged_folder(old, overwrite=True),
        ):
            pytest.fail("the block must not run")
    assert tree(old.parent) == {"out [1]": "", "out [1]/other": "new"}


def test_parents_made_for_nothing_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "a/b/c", overwrite=False):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_numpy_meets_a_full_disk(old: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MachineError), staged_folder(old, overwrite=True) as stage:
            np.save(stage / "x.npy", np.zeros(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_output_must_not_hold_an_input(tmp_path: Path) -> None:
    model = tmp_path / "m/model.onnx"
    refuse_overlap(tmp_path / "out", [model])
    refuse_overlap(tmp_path / "m/out", [model])
    for output in (tmp_path, tmp_path / "m", tmp_path / "m/../m", model):
        with pytest.raises(UsageError, match="would replace"):
            refuse_overlap(output, [model])

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpqc.ir import MachineError, temporary_folder
from mpqc.ir.atomic_file import replacing
from mpqc.ir.owned_folder import claim, release

OWNER = """
import sys
from pathlib import Path
from mpqc.ir import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def owner(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Starts a process that has a temporary folder in ``place``."""
    command = [sys.executable, "-c", OWNER, str(place)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def test_a_folder_is_gone_afterwards_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), temporary_folder(tmp_path) as folder:
        (folder / "missing").rename(folder / "file")
    assert list(tmp_path.iterdir()) == []


def test_the_dead_are_cleaned_up_after_and_the_living_are_not(tmp_path: Path) -> None:
    dead, left = owner(tmp_path)
    living, kept = owner(tmp_path)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert (left / "file").exists()
    with temporary_folder(tmp_path):
        assert not left.exists()
        assert (kept / "file").exists()
    living.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_ours_are_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    (tmp_path / ".mpqc-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mpqc-other").mkdir()
    (tmp_path / ".mpqc-dead").mkdir()
    with temporary_folder(tmp_path):
        pass
    names = [".mpqc-link", "elsewhere", "mpqc-other"]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    assert (tmp_path / "elsewhere/file").exists()


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    lock = claim(tmp_path / "x")
    assert lock is not None
    assert claim(tmp_path / "x") is None
    release(tmp_path / "x", lock)
    again = claim(tmp_path / "x")
    assert again is not None
    release(tmp_path / "x", again)
    assert list(tmp_path.iterdir()) == []


def test_nowhere_to_write_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def none_usable() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    with pytest.raises(MachineError, match="/tmp") as caught, temporary_folder():
        pass
    assert "TMPDIR" in caught.value.hint


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"ne", "w"])  # type: ignore[list-item]
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]

"""What a machine can lack: each ends with exit code 4 and the cause, or does not matter."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..tools.tiny_models import language_model
from .kills import Ended, Server

pytestmark = [pytest.mark.slow, pytest.mark.ci_sample, pytest.mark.ort]


OF_LIBRARIES = (".ses", f"torchinductor_{getpass.getuser()}")  # onnxruntime's and torch's


def can_mount() -> bool:
    """Tells whether a process here may mount file systems of its own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(
    not can_mount(), reason="this system lets nobody mount file systems of their own"
)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Server]]:
    place = tmp_path_factory.mktemp("servers")
    (place / "plain").mkdir()
    (place / "mounting").mkdir()
    with Server(place / "plain") as plain:
        if not can_mount():
            yield {False: plain}
            return
        with Server(place / "mounting", mounting=True) as mounting:
            yield {False: plain, True: mounting}


class Attempt:
    """A compile on a machine that lacks something."""

    def __init__(self, servers: dict[bool, Server], folder: Path) -> None:
        self._servers, self.folder = servers, folder
        for name in ("home", "cache", "tmp"):
            (folder / name).mkdir()
        self.model = language_model(folder / "model/model.onnx")
        self.environment = {"TMPDIR": str(folder / "tmp"), "MPQC_CACHE": str(folder / "cache")}

    def __call__(
        self, *, mounts: dict[str, str] | None = None, **limits: int
    ) -> tuple[Ended, list[str]]:
        """Compiles; returns how it ended, and every file that it left."""
        words = f"compile {self.model} --budget 3.5 --random-calibration --samples 4 "
        words += f"--sequence-length 32 -o {self.folder / 'home/new/out'}"
        places = {self.folder / name: one for name, one in (mounts or {}).items()}
        server = self._servers[bool(mounts)]
        ended = server.start(
            words.split(), self.environment, limits=limits, mounts=places
        ).wait()
        left = [
            str(one.relative_to(self.folder))
            for name in ("home", "tmp", "cache/stats")
            for one in (self.folder / name).glob("*")
            if one.name not in OF_LIBRARIES
        ]
        return ended, left


@pytest.fixture
def attempt(servers: dict[bool, Server], tmp_path: Path) -> Attempt:
    return Attempt(servers, tmp_path)


def check_refused(ended: Ended, *words: str) -> None:
    assert ended.code == 4, ended.errors
    for word in words:
        assert word in ended.errors
    assert "Traceback" not in ended.errors


@needs_mounts
def test_a_full_disk_for_the_output(attempt: Attempt) -> None:
    ended, left = attempt(mounts={"home": "size=64k"})
    check_refused(
        ended, str(attempt.folder / "home/new/out"), "No space left", "free some space"
    )
    assert ended.mounted == ()
    assert [one for one in left if not one.startswith("cache")] == []


@needs_mounts
def test_a_full_disk_for_the_cache(attempt: Attempt) -> None:
    ended, left = attempt(mounts={"cache": "size=100k"})
    check_refused(ended, str(attempt.folder / "cache"), "No space left", "MPQC_CACHE")
    folder, *finished = ended.mounted
    assert folder == str(attempt.folder / "cache/stats")
    assert all(one.endswith(".safetensors") for one in finished), "blocks for the next run"
    assert left == []


@needs_mounts
def test_an_output_that_cannot_be_written(attempt: Attempt) -> None:
    ended, left = attempt(mounts={"home": "ro"})
    check_refused(ended, str(attempt.folder / "home/new/out"), "Read-only", "choose another")
    assert left == []
    assert ended.seconds < 5, "after the work"


@needs_mounts
def test_a_cache_that_cannot_be_written_is_done_without(attempt: Attempt) -> None:
    ended, left = attempt(mounts={"cache": "ro"})
    assert ended.code == 0, ended.errors
    assert "nothing is cached" in ended.errors
    assert left == ["home/new"]


def test_files_that_may_not_grow(attempt: Attempt) -> None:
    ended, left = attempt(FSIZE=20_000)
    check_refused(ended, "too large", "ulimit -f")
    assert left == []


@pytest.mark.parametrize("megabytes", [1, 5, 20, 60, 150, 250])
def test_too_little_memory_is_refused_first(attempt: Attempt, megabytes: int) -> None:
    ended, left = attempt(AS=megabytes << 20)
    check_refused(ended, "out of memory")
    assert left == []
    assert ended.seconds < 5, "after the work"


def test_just_enough_memory(attempt: Attempt) -> None:
    stacks = 32 * (os.cpu_count() or 1)  # each core gets a thread
    ended, _ = attempt(AS=(400 + stacks) << 20)
    assert ended.code == 0, ended.errors


def test_no_folder_for_temporary_files_and_no_home(attempt: Attempt) -> None:
    del attempt.environment["MPQC_CACHE"]
    missing = attempt.folder / "model/model.onnx/missing"  # even root cannot make it
    places = {"TMPDIR": missing, "HOME": missing, "XDG_CACHE_HOME": Path()}
    attempt.environment.update({name: str(one) for name, one in places.items()})
    ended, left = attempt()
    assert ended.code == 0, ended.errors
    assert "nothing is cached" in ended.errors
    assert left == ["home/new"]

"""SIGKILL at any moment, then the same command again: the same bytes, and nothing left over.

``make kill KILLS=50`` kills more often than the sample in CI does.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..tools.tiny_models import language_model
from .kills import Ended, Running, Server

pytestmark = [pytest.mark.slow, pytest.mark.ort]

Tree = dict[str, object]
_WAYS = 4  # to kill, each a test below


def contents(folder: Path) -> Tree:
    """Returns every file of a result; of mpqc.json, everything but times."""
    files: Tree = {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }
    return files | {"mpqc.json": _timeless(json.loads((folder / "mpqc.json").read_text()))}


def names_in(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


def _timeless(facts: dict[str, object]) -> dict[str, object]:
    del facts["timings"]
    return facts


@dataclass(frozen=True)
class Bench:
    """One model, and what an undisturbed compile makes of it.

    Attributes:
        server: Runs compiles.
        model: The model.
        undisturbed: How the undisturbed compile ended.
        result: What it made.
        cached: The names of the files that it left in the cache.
        temporary: What libraries left in TMPDIR all the same.
    """

    server: Server
    model: Path
    undisturbed: Ended
    result: Tree
    cached: set[str]
    temporary: set[str]


@dataclass(frozen=True)
class Place:
    """Where one compile works.

    Attributes:
        bench: The model.
        folder: Holds nothing else.
        cache: Shared with other places, or not.
    """

    bench: Bench
    folder: Path
    cache: Path

    def start(self, *, change: int = 0) -> Running:
        temporary = self.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        words = f"compile {self.bench.model} --budget 3.5 --overwrite --random-calibration "
        words += f"--samples 4 --sequence-length 32 -o {self.folder / 'home/out'}"
        environment = {"TMPDIR": str(temporary), "MPQC_CACHE": str(self.cache)}
        return self.bench.server.start(words.split(), environment, change=change)

    def check(self) -> None:
        """Checks that the result is there and nothing besides."""
        assert names_in(self.folder / "home") == {"out"}
        assert names_in(self.folder / "tmp") <= self.bench.temporary
        assert names_in(self.cache / "stats") == self.bench.cached
        assert contents(self.folder / "home/out") == self.bench.result


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("kill")
    model = language_model(folder / "model.onnx")
    with Server(folder) as server:
        nothing = Ended(0, 0, 0, "")
        first = Bench(server, model, nothing, {}, set(), set())
        place = Place(first, folder / "a", folder / "cache")
        ended = place.start().wait()
        assert ended.code == 0, ended.errors
        cached, temporary = names_in(place.cache / "stats"), names_in(folder / "a/tmp")
        assert not any("mpqc" in name for name in temporary)
        result = contents(folder / "a/home/out")
        yield Bench(server, model, ended, result, cached, temporary)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        kills = metafunc.config.getoption("--kills")
        metafunc.parametrize("seed", range(-(-kills // _WAYS)))


def check_killed(place: Place, ended: Ended) -> None:
    """Checks that a kill left no half of a result, and that the next run leaves nothing."""
    assert ended.code in (-9, 0), ended.errors
    output = place.folder / "home/out"
    assert not output.exists() or contents(output) == place.bench.result
    again = place.start().wait()
    assert again.code == 0, again.errors
    assert "thrown away" not in again.errors, "a kill must not leave damaged files"
    place.check()


@pytest.mark.ci_sample
def test_killed_at_any_moment(bench: Bench, seed: int, tmp_path: Path) -> None:
    place = Place(bench, tmp_path, tmp_path / "cache")
    seconds = random.Random(seed).uniform(0, bench.undisturbed.seconds)
    check_killed(place, place.start().kill_after(seconds))


@pytest.mark.ci_sample
def test_killed_before_any_change_to_the_file_system(
    bench: Bench, seed: int, tmp_path: Path
) -> None:
    place = Place(bench, tmp_path, tmp_path / "cache")
    change = random.Random(seed).randint(1, bench.undisturbed.changes)
    ended = place.start(change=change).wait()
    assert ended.code == -9, f"change {change} of {bench.undisturbed.changes}"
    check_killed(place, ended)


@pytest.mark.ci_sample
def test_killed_while_it_replaces_an_output(bench: Bench, seed: int, tmp_path: Path) -> None:
    place = Place(bench, tmp_path, tmp_path / "cache")
    assert place.start().wait().code == 0
    last = random.Random(seed).randint(0, 40)  # the output is replaced among the last changes
    found = place.start(change=10**9).wait()
    ended = place.start(change=max(found.changes - last, 1)).wait()
    check_killed(place, ended)


@pytest.mark.ci_sample
def test_killed_beside_another_that_shares_the_cache(
    bench: Bench, seed: int, tmp_path: Path
) -> None:
    living = Place(bench, tmp_path / "living", tmp_path / "cache")
    killed = Place(bench, tmp_path / "killed", tmp_path / "cache")
    other = living.start()
    seconds = random.Random(seed).uniform(0, 1.5 * bench.undisturbed.seconds)
    ended = killed.start().kill_after(seconds)
    finished = other.wait()
    assert finished.code == 0, finished.errors
    assert contents(tmp_path / "living/home/out") == bench.result
    check_killed(killed, ended)


def test_of_two_on_one_output_the_second_is_refused_at_once(
    bench: Bench, tmp_path: Path
) -> None:
    place = Place(bench, tmp_path, tmp_path / "cache")
    first = place.start()
    while not list((tmp_path / "home").glob(".out.mpqc-stage/new")):
        time.sleep(0.01)
    second = place.start().wait()
    assert second.code == 2
    assert "another process is writing" in second.errors
    assert second.seconds < bench.undisturbed.seconds / 2
    assert first.wait().code == 0
    place.check()

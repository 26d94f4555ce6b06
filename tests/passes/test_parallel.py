"""Work on all cores waits where memory has no room for it."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpqc.passes.engine.execution import memory, parallel
from mpqc.passes.engine.pipeline.progress import Bar, SilentProgress


@pytest.mark.parametrize(("need", "most"), [(10, 4), (30, 2), (70, 1), (500, 1)])
def test_calls_share_the_memory(need: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "available_memory", lambda: 100)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    running, peak, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return item * item

    items = list(range(12))
    found = parallel.for_each(work, items, SilentProgress(), "", need=lambda _: need)
    assert found == [item * item for item in items]
    assert peak == most


def test_a_call_that_fails_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "available_memory", lambda: 100)

    def work(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        parallel.for_each(work, [0, 0, 0, 0], SilentProgress(), "", need=lambda _: 60)


def test_a_container_bounds_what_the_system_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "meminfo"
    system.write_text("MemTotal:  9 kB\nMemAvailable:   4 kB\n")
    monkeypatch.setattr(memory, "_SYSTEM", system)
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert memory.available_memory() == 4096
    (tmp_path / "memory.max").write_text("2000\n")
    (tmp_path / "memory.current").write_text("1500\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 300\n")
    assert memory.available_memory() == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() == 4096
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "none")
    assert memory.available_memory() is None


def test_a_limit_of_the_process_bounds_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "statm").write_text("3 1 1 1 0 1 0\n")
    for name, path in [("_SYSTEM", "none"), ("_CONTAINER", "none"), ("_PROCESS", "statm")]:
        monkeypatch.setattr(memory, name, tmp_path / path)
    page = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10 * page, 10 * page))
    assert memory.available_memory() == 7 * page
    monkeypatch.setattr(resource, "getrlimit", lambda _: (page, page))
    assert memory.available_memory() == 0


class Heard(SilentProgress):
    """Takes down what bars are told."""

    def __init__(self) -> None:
        self.announced: list[tuple[str, int | None, float | None]] = []
        self.advanced: list[float] = []

    @contextmanager
    def bar(self, what: str, items: int | None, work: float | None = None) -> Iterator[Bar]:
        self.announced.append((what, items, work))
        yield self

    def advance(self, work: float = 1.0) -> None:
        self.advanced.append(work)


def test_the_dearest_go_first_and_are_told_as_they_finish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    order: list[int] = []

    def work(item: int) -> int:
        order.append(item)
        return -item

    heard = Heard()
    found = parallel.for_each(work, [2, 5, 3, 5], heard, "counting", cost=float)
    assert found == [-2, -5, -3, -5]
    assert order == [5, 5, 3, 2]
    assert heard.announced == [("counting", 4, 15.0)]
    assert heard.advanced == [5.0, 5.0, 3.0, 2.0]


def test_a_small_item_is_told_before_a_large_one_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    small_told = threading.Event()

    class Telling(Heard):
        def advance(self, work: float = 1.0) -> None:
            super().advance(work)
            small_told.set()

    def work(item: int) -> int:
        if item == 9:
            assert small_told.wait(10)
        return item

    heard = Telling()
    assert parallel.for_each(work, [9, 1], heard, "", cost=float) == [9, 1]
    assert heard.advanced == [1.0, 9.0]

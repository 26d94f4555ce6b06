"""Threads side by side: results in order, few at a time, steps in the thread of the caller."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from mpqc.passes.engine.execution import in_order as module
from mpqc.passes.engine.execution.in_order import Step, in_order


@pytest.mark.parametrize(("need", "most"), [(0, 4), (30, 2), (500, 1)])
def test_few_are_at_work_and_results_keep_their_order(
    need: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 100)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    running, peak, lock = 0, 0, threading.Lock()
    steps: list[tuple[float, threading.Thread]] = []

    def work(item: int, step: Step) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        assert torch.get_num_threads() == 1
        time.sleep(0.01 * (item % 3))
        step(item)
        with lock:
            running -= 1
        return item * item

    found = in_order(
        work,
        range(12),
        lambda done: steps.append((done, threading.current_thread())),
        need=need,
    )
    assert list(found) == [item * item for item in range(12)]
    assert peak == most
    assert sorted(done for done, _ in steps) == list(range(12))
    assert {where for _, where in steps} == {threading.current_thread()}


def test_a_failure_ends_it_and_threads_are_as_before() -> None:
    threads, seen = torch.get_num_threads(), []

    def work(item: int, step: Step) -> float:
        seen.append(item)
        return 1 / (item - 3)

    with pytest.raises(ZeroDivisionError):
        list(in_order(work, range(1000), lambda done: None))
    assert len(seen) < 1000
    assert torch.get_num_threads() == threads

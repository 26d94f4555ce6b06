"""Lines of progress: pass n of m, the share of the work, and the time that is left."""

from __future__ import annotations

import io

import pytest

from mpqc.passes.engine.pipeline.progress import Stage
from mpqc.tools.progress import BarProgress, PlainProgress
from mpqc.tools.time_left import TimeLeft, spoken


class Clock:
    """A clock that a test winds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("time.monotonic", found)
    return found


def test_lines_in_a_pipe_say_pass_share_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    shown = PlainProgress(stream)
    shown._left = TimeLeft(clock)
    shown.begin(Stage(0, "normalize", (), 3))
    shown.begin(Stage(1, "long", (0.0, 300.0, 100.0), 3))
    with shown.bar("counting", 4, 100.0) as bar:
        clock.now += 15
        bar.advance(5.0)  # too soon for another line
        clock.now += 15
        bar.advance(20.0)  # 30 s for a quarter of what 75 s were expected for
    shown.begin(Stage(2, "last", (0.0, 300.0, 100.0), 3))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["pass 1 of 3: normalize", "pass 2 of 3: long"]
    # 300 - 75 + 100 expected seconds remain, and this machine takes 0.4 of them.
    assert lines[2] == (
        "counting: 2 of 4, 25%, 30 s; pass 2 of 3, 19% of all work, about 2 min left"
    )
    assert lines[3:] == ["counting: done in 30.0 s", "pass 3 of 3: last"]


def test_without_expectations_only_what_is_counted_is_said(clock: Clock) -> None:
    stream = io.StringIO()
    shown = PlainProgress(stream)
    with shown.bar("prices", None) as bar:
        clock.now += 30
        bar.advance()
    for _ in shown.track(range(2), 2, "items"):
        clock.now += 30
    assert stream.getvalue().splitlines() == [
        "prices: 1 so far, 30 s",
        "prices: done in 30.0 s",
        "items: 1 of 2, 50%, 30 s",
        "items: 2 of 2, 100%, 60 s",
        "items: done in 60.0 s",
    ]


def test_time_left_learns_from_the_passes_before(clock: Clock) -> None:
    left = TimeLeft(clock)
    expected = (10.0, 10.0, 20.0)
    left.begin(Stage(0, "one", expected, 3))
    clock.now += 40  # four times what was expected
    left.begin(Stage(1, "two", expected, 3))
    assert left.text() == "pass 2 of 3, 25% of all work, about 2 min left"
    clock.now += 20
    left.begin_bar()  # half of the pass had no bar
    assert left.text() == "pass 2 of 3, 38% of all work, about 2 min left"
    left.advance(1.0)
    assert left.text() == "pass 2 of 3, 50% of all work, about 60 s left"
    left.begin(Stage(0, "again", expected, 3))  # another attempt begins
    assert left.text() == "pass 1 of 3, 0% of all work, about 40 s left"


def test_times_are_spoken_plainly() -> None:
    assert [spoken(one) for one in (0.4, 99, 130, 7800)] == [
        "0 s",
        "99 s",
        "2 min",
        "2 h 10 min",
    ]


def test_bars_show_the_pass_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    shown = BarProgress()
    shown.begin(Stage(1, "two", (1.0, 3.0), 2))
    with shown.bar("counting", 2, 10.0) as bar:
        bar.advance(9.0)
        bar.advance(1.0)
    said = capsys.readouterr().err
    assert "counting" in said
    assert "2/2" in said
    assert "pass 2 of 2, 100% of all work" in said

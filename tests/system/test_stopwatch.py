"""Seconds by stage on a clock that is told the time."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.system.stopwatch import keep_time, measure_time, read_clock, seconds_of_process


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_counts_without_those_inside_it() -> None:
    clock = Clock()
    seconds = dict[str, float]()
    with keep_time(before=3, clock=clock) as stopwatch:
        clock.now += 1  # between stages
        with keep_time(), measure_time(seconds, "outer"):
            clock.now += 5
            with measure_time(seconds, "inner"):
                clock.now += 7
                with measure_time(seconds, "outer"):
                    clock.now += 11
            clock.now += 13
    assert seconds == {"outer": 5 + 11 + 13, "inner": 7}
    assert stopwatch.explained == sum(seconds.values())
    assert stopwatch.elapsed == 3 + 1 + stopwatch.explained


def test_a_stage_that_fails_counts_what_it_took() -> None:
    clock = Clock()
    seconds = dict[str, float]()

    def fail() -> None:
        with measure_time(seconds, "load"):
            clock.now += 2
            raise ValueError("it fails")

    with keep_time(clock=clock) as stopwatch, pytest.raises(ValueError, match="it fails"):
        fail()
    assert seconds == {"load": 2}
    with measure_time(seconds, "load"):
        clock.now += 1
    assert stopwatch.explained == 2, "what is measured where no time is kept counts for no stopwatch"


def test_the_age_of_a_process_is_that_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(f"7 (a (b) c) S {' '.join(['0'] * 18)} {250 * ticks} 0 0\n")
    monkeypatch.setattr("time.clock_gettime", lambda _: 262.0)
    assert seconds_of_process(stat) == 12
    stat.write_text("something else")
    assert seconds_of_process(stat) == 0
    assert seconds_of_process(tmp_path / "missing") == 0


def test_time_of_other_processes_is_not_explained_by_this_one() -> None:
    started, clock = datetime(2026, 11, 22, tzinfo=UTC), Clock()
    with keep_time(clock=clock):
        own = dict[str, float]()
        with measure_time(own, "measure"):
            clock.now += 4
        assert read_clock(started, own, 1).elapsed == 4
        merged = read_clock(started, own | {"shared pass": 9.0}, 1)
        assert (merged.elapsed, merged.unexplained, merged.others) == (None, None, 0)

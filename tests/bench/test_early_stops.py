"""False passes under peeking, and what stopping early saves, in small simulations; the page has the large ones."""

from __future__ import annotations

import pytest

from harness.records import Sequential
from harness.statistics import planned_looks
from tests.helpers.simulated_looks import Stream, every, fixed_size, looks_for, stop_early, streams

STREAMS = {stream.name: stream for stream in streams()}
METHODS: tuple[Sequential, ...] = ("betting", "group_sequential")


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_looking_often_seldom_passes_a_truth_at_the_limit(stream: Stream) -> None:
    """150 runs of up to 120 documents: 5 % and three standard errors are 10 %."""
    found = stop_early(stream, stream.limit, planned_looks(20, 120), "group_sequential", 150)
    assert found.passed / found.runs <= 0.10


@pytest.mark.parametrize("name", ["top-1 agreement, few documents touched", "flips, 1 %", "Brier score"])
def test_betting_may_look_after_every_batch(name: str) -> None:
    stream = STREAMS[name]
    found = stop_early(stream, stream.limit, every(16, 20, 100), "betting", 60)
    assert found.passed / found.runs <= 0.05
    assert found.covered / found.runs >= 0.90


def test_ordinary_intervals_would_be_noticed() -> None:
    """What the simulation is for: looked at after every batch, they pass many times as often as they may."""
    stream = STREAMS["top-1 agreement, few documents touched"]
    found = stop_early(stream, stream.limit, every(8, 20, 200), None, 100)
    assert found.passed / found.runs > 0.10


@pytest.mark.parametrize("name", ["perplexity ratio", "flips, 5 %", "Brier score"])
def test_a_clear_case_needs_less_than_half_of_a_fixed_size(name: str) -> None:
    """30 runs each with a tenth and with three times the allowed damage, where a fixed size is for half of it."""
    stream = STREAMS[name]
    fixed = fixed_size(stream.name, 0.5, runs=200)
    for share, outcome in ((0.1, "passed"), (3.0, "failed")):
        truth = stream.neutral + share * (stream.limit - stream.neutral)
        found = stop_early(stream, truth, looks_for(fixed), "group_sequential", 30)
        assert getattr(found, outcome) >= 29
        assert found.documents <= fixed / 2


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_false_passes_under_peeking(stream: Stream, method: Sequential) -> None:
    """600 runs: 5 % and three standard errors are 7.7 %."""
    found = stop_early(stream, stream.limit, planned_looks(20, 200), method, 600)
    assert found.passed / found.runs <= 0.077

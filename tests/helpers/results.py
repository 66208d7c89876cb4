"""What a measure or an estimator gave, as the kind of result that a test expects; another kind fails the test."""

from __future__ import annotations

from collections.abc import Iterable

from harness.records import Measurement, Skipped
from harness.statistics import Interval


def measurement(entry: Measurement | Skipped) -> Measurement:
    assert isinstance(entry, Measurement), entry
    return entry


def measurements(entries: Iterable[Measurement | Skipped]) -> list[Measurement]:
    return [measurement(entry) for entry in entries]


def skipped(entry: Measurement | Skipped) -> Skipped:
    assert isinstance(entry, Skipped), entry
    return entry


def interval(entry: Interval | None) -> Interval:
    assert entry is not None
    return entry


def number(value: float | None) -> float:
    assert value is not None
    return value


def ends(entry: Measurement) -> tuple[float, float]:
    """The two ends of the interval of the change."""
    return number(entry.low), number(entry.high)


def by_name(entries: Iterable[Measurement | Skipped], module: str | None = None) -> dict[str, Measurement]:
    """Measurements by name of the metric, of one module where one is given; none of them may have been skipped."""
    return {name: measurement(entry) for name, entry in with_skipped(entries, module).items()}


def with_skipped(
    entries: Iterable[Measurement | Skipped], module: str | None = None
) -> dict[str, Measurement | Skipped]:
    """Results by name of the metric, of one module where one is given."""
    return {
        entry.name if isinstance(entry, Measurement) else entry.measure: entry
        for entry in entries
        if module is None or entry.labels.get("module") == module
    }

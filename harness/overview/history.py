"""One variant over time: every judged metric from run to run, what changed between two runs, and what moved with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from harness.records import Measurement, Run
from harness.report import words
from harness.report.rules import prepare_verdicts

Topic = Literal["reference", "variant", "recipe", "gates", "data", "versions", "machine"]
MOST_CHANGES = 40
"""Changes between two runs that are listed."""


@dataclass(frozen=True)
class Point:
    """A metric in one run: the number that a rule compared, its interval, its limits. run: the place in the order."""

    run: int
    value: float
    low: float | None
    high: float | None
    limits: tuple[float, ...]
    status: str


@dataclass(frozen=True)
class Series:
    """A judged metric over the runs that have it."""

    title: str
    name: str
    unit: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Change:
    """Something that was different between two runs."""

    topic: Topic
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Move:
    """A metric whose numbers differ between two runs.

    beyond: whether the later number lies outside the earlier interval, or differs at all where numbers are counted.
    decided: whether its rule has another status now; before_status and after_status: both.
    """

    title: str
    before: Measurement
    after: Measurement
    beyond: bool
    before_status: str
    after_status: str

    @property
    def decided(self) -> bool:
        """Whether the rule on this metric has another status now."""
        return self.before_status != self.after_status


@dataclass(frozen=True)
class Step:
    """From one run to the next: what changed of what the numbers depend on, and what moved."""

    before: Run
    after: Run
    changes: tuple[Change, ...]
    moves: tuple[Move, ...]

    @property
    def flipped(self) -> bool:
        """Whether the verdict changed."""
        return self.before.verdict != self.after.verdict

    @property
    def same_inputs(self) -> bool:
        """Whether every number should be the same: same models, documents, settings and versions."""
        return self.before.data_key == self.after.data_key

    @property
    def explanation(self) -> str:
        """What the moves come from, as far as the two records tell."""
        beyond = [each for each in self.moves if each.beyond]
        topics = list(dict.fromkeys(change.topic for change in self.changes))
        if self.same_inputs:
            if any(change.topic == "gates" for change in self.changes):
                return "The inputs are the same; only the rules changed."
            if not self.moves:
                return "The inputs and all numbers are the same."
            return (
                "The inputs are the same, so what moved is noise of the computation: numbers that depend on the clock, "
                "or an operation that does not repeat itself on this machine."
            )
        if not beyond:
            return "No number left the interval that it had before: what moved is within the noise of the sample."
        if len(topics) == 1:
            return f"What moved beyond its interval comes from the one thing that changed: {NAMES[topics[0]]}."
        if not topics:
            return "What moved beyond its interval comes from the documents: other content from the same source."
        return f"What moved beyond its interval comes from one or more of: {', '.join(NAMES[each] for each in topics)}."


NAMES: Mapping[Topic, str] = {
    "reference": "the reference",
    "variant": "the variant's files",
    "recipe": "the recipe",
    "gates": "the gates",
    "data": "the suites and their documents",
    "versions": "versions of libraries",
    "machine": "the machine",
}


def find_series(runs: Sequence[Run]) -> list[Series]:
    """Every judged metric over the runs, in the order of the last run's rules."""
    points: dict[tuple[str, str, str], list[Point]] = {}
    for place, run in enumerate(runs):
        for item in prepare_verdicts(run):
            if item.compared is None:
                continue
            name, number = words.add_labels(item.verdict.metric, item.verdict.labels), item.compared.number
            unit = run.metric(item.verdict.metric).unit
            point = Point(place, number.value, number.low, number.high, item.compared.bound.limits, item.verdict.status)
            held = points.setdefault((item.title, name, unit), [])
            if not held or held[-1].run != place:
                held.append(point)
    return [Series(title, name, unit, tuple(held)) for (title, name, unit), held in points.items()]


def find_steps(runs: Sequence[Run]) -> list[Step]:
    """The steps between runs in order of time."""
    return [
        Step(before, after, tuple(find_changes(before, after)), tuple(find_moves(before, after)))
        for before, after in pairwise(runs)
    ]


def find_changes(before: Run, after: Run) -> list[Change]:
    """What differs of everything that the numbers depend on."""
    changes = [
        *_compare_identities("reference", before, after),
        *_compare_identities("variant", before, after),
        *_compare_settings(before.asked, after.asked),
    ]
    one, other = before.environment, after.environment
    for package in sorted(one.packages.keys() | other.packages.keys()):
        pair = one.packages.get(package, "not there"), other.packages.get(package, "not there")
        if pair[0] != pair[1]:
            changes.append(Change("versions", package, *pair))
    if one.harness != other.harness:
        changes.append(Change("versions", "harness", one.harness, other.harness))
    for what in ("python", "platform", "processor", "threads"):
        pair = str(getattr(one, what)), str(getattr(other, what))
        if pair[0] != pair[1]:
            changes.append(Change("versions" if what == "python" else "machine", what, *pair))
    return changes


def _compare_identities(side: Literal["reference", "variant"], before: Run, after: Run) -> Iterator[Change]:
    one, other = getattr(before, side), getattr(after, side)
    for what in ("weights_sha256", "config_sha256", "tokenizer_sha256", "dtype", "device", "attention", "revision"):
        pair = str(getattr(one, what)), str(getattr(other, what))
        if pair[0] != pair[1]:
            yield Change(side, what.removesuffix("_sha256"), pair[0][:12], pair[1][:12])


_TOPICS: Mapping[str, Topic] = {
    "reference": "reference",
    "variant": "recipe",
    "calibration": "recipe",
    "target": "recipe",
    "suites": "data",
    "gates": "gates",
}
_NOT_COMPARED = ("source", "where", "name", "choice", "select", "outputs", "why")


def _compare_settings(before: Any, after: Any) -> Iterator[Change]:
    """Settings that differ, by their keys; where a file stood, and reasons, are none."""
    one, other = dict(_flatten(before, ())), dict(_flatten(after, ()))
    for path in sorted(one.keys() | other.keys(), key=lambda path: tuple(map(str, path))):
        pair = str(one.get(path, "not set")), str(other.get(path, "not set"))
        if pair[0] != pair[1] and str(path[0]) in _TOPICS:
            yield Change(_TOPICS[str(path[0])], ".".join(map(str, path)), *pair)


def _flatten(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key not in _NOT_COMPARED:
                yield from _flatten(each, (*path, key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _flatten(each, (*path, index))
    else:
        yield path, value


def find_moves(before: Run, after: Run) -> list[Move]:
    """Every metric of both runs whose change differs, those of rules that were decided otherwise first."""
    known = {(m.name, tuple(sorted(m.labels.items()))): m for m in before.measurements}
    judged = [
        {words.add_labels(v.metric, v.labels): v.status for v in reversed(words.worst_first(run.verdicts))}
        for run in (before, after)
    ]
    moves = []
    for m in after.measurements:
        earlier = known.get((m.name, tuple(sorted(m.labels.items()))))
        if earlier is None or earlier.change == m.change or earlier.change is None or m.change is None:
            continue
        name = words.add_labels(m.name, m.labels)
        statuses = [each.get(name, "") for each in judged]
        moves.append(Move(words.metric(after, m.name), earlier, m, _is_beyond(earlier, m), statuses[0], statuses[1]))
    return sorted(moves, key=lambda move: (not move.decided, not move.beyond, move.after.name))


def _is_beyond(before: Measurement, after: Measurement) -> bool:
    """Whether the two intervals have no value in common; of numbers without one, whether they differ."""
    ends = [before.low, before.high, after.low, after.high]
    if any(end is None for end in ends):
        return before.basis == "counted" or after.basis == "counted"
    low_1, high_1, low_2, high_2 = (float(end) for end in ends if end is not None)
    return high_1 < low_2 or high_2 < low_1

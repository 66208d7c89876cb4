"""Worlds whose documents are drawn one after the other and looked at while they are: what rules say, and how soon.

As in tests/helpers/simulated.py the truth is
known and may lie exactly at the limit of the rule, so that every pass is a false
one; here it has as many chances as there are looks. The same worlds with less or more damage show what stopping early
saves, against the size that one would have fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from harness.measures._shared import Count, make_sampled
from harness.measures.calibration import BRIER
from harness.measures.divergence import METRICS
from harness.measures.perplexity import BROKEN_ABOVE, RATIO, _broken
from harness.records import Measurement, Metric, Sequential
from harness.rules import Rule
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.statistics import Betting, GroupSequential, Interval, Intervals, mean, planned_looks

Generator = np.random.Generator
DIVERGENCE = {metric.name: metric for metric in METRICS}
LONGEST = 9
LEAST = 20
"""Documents of the first look, below which no rule is asked."""


@dataclass(frozen=True)
class Stream:
    """A kind of metric on documents that never end.

    draw: values of ``n`` documents when the truth is ``truth``. intervals: what the measure asks of its intervals.
    neutral and limit: the truth without damage, and at the limit of ``rule``. exact: whether every value is a document.
    beside: the rule on broken documents of the same gate, as in ship; a run passes only if both pass.
    """

    name: str
    metric: Metric
    rule: Rule
    neutral: float
    limit: float
    draw: Callable[[Generator, np.ndarray, float], np.ndarray]
    interval: Callable[[Intervals, np.ndarray, np.ndarray], Interval | None]
    value: Callable[[np.ndarray], float] = mean
    exact: bool = False
    beside: Rule | None = None

    @property
    def bounded(self) -> bool:
        """Whether its values have a range by definition."""
        return self.metric.unit in ("share", "probability")

    def documents(self, generator: Generator, n: int) -> np.ndarray:
        """The label of the document of each token: 3 to 9 in each, or one; more would say no more about documents."""
        return np.repeat(np.arange(n), 1 if self.exact else generator.integers(3, LONGEST + 1, n))

    def judge(self, found: Measurement, values: np.ndarray, labels: np.ndarray, intervals: Intervals) -> str:
        """The status of the gate: failed where a rule failed, passed where every rule passed, else undecided."""
        statuses = {self.rule.judge(found, identical=False).status}
        if self.beside:
            broken = _broken(values, labels, BROKEN_ABOVE, intervals)
            statuses.add(self.beside.judge(broken, identical=False).status)
        return next(status for status in ("fail", "inconclusive", "pass") if status in statuses)

    def measure(self, values: np.ndarray, labels: np.ndarray, intervals: Intervals) -> Measurement:
        """What a run would say about these tokens."""
        count = Count(len(values), len(np.unique(labels)))
        around = self.interval(intervals, values, labels)
        return make_sampled(self.metric, "m", count, change=self.value(values), interval=around)


def _per_document(labels: np.ndarray, own: Callable[[int], np.ndarray]) -> np.ndarray:
    """A number for each document, at each of its tokens."""
    values: np.ndarray = own(int(labels[-1]) + 1)[labels]
    return values


def _nll(own: Callable[[Generator, int], np.ndarray]) -> Callable[[Generator, np.ndarray, float], np.ndarray]:
    def draw(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
        shift = _per_document(labels, lambda n: own(generator, n))
        return math.log(truth) + shift + 0.05 * generator.normal(size=len(labels))

    return draw


def _log_normal_damage(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
    """Documents are damaged by very different amounts, and the more damage the more they differ."""
    own = _per_document(labels, lambda n: np.exp(1.2 * generator.normal(size=n) - 1.2**2 / 2))
    return math.log(truth) * own + 0.05 * generator.normal(size=len(labels))


def _damage_of_few(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
    """One document in twenty carries all damage."""
    own = _per_document(labels, lambda n: np.where(generator.random(n) < 0.05, 20.0, 0.0))
    return math.log(truth) * own + 0.05 * generator.normal(size=len(labels))


def _kl(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
    own = _per_document(labels, lambda n: 0.5 * generator.normal(size=n))
    return truth * np.exp(own + 1.2 * generator.normal(size=len(labels)) - (0.5**2 + 1.2**2) / 2)


def _same(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
    """Tokens that agree, in some documents more often than in others."""
    if truth >= 1:
        return np.ones(len(labels))
    own = _per_document(labels, lambda n: generator.beta(20 * truth, 20 * (1 - truth), n))
    return (generator.random(len(labels)) < own) * 1.0


def _seldom(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
    """Nineteen of twenty documents agree in every token, the twentieth does not by far."""

    def own(n: int) -> np.ndarray:
        touched = generator.random(n) < 0.05
        return np.where(touched, generator.beta(2, 2, n) * min(40 * (1 - truth), 1.0), 0.0)

    return (generator.random(len(labels)) >= _per_document(labels, own)) * 1.0


def _flipped(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
    return (generator.random(len(labels)) < truth) * 1.0


def _worse_score(generator: Generator, labels: np.ndarray, truth: float) -> np.ndarray:
    """Changes of a squared error: mostly small, now and then by nearly as much as there can be."""
    own = _per_document(labels, lambda n: 0.03 * generator.normal(size=n))
    small = own + 0.05 * generator.normal(size=len(labels))
    flipped = generator.random(len(labels)) < 0.02
    return np.clip(truth + np.where(flipped, generator.choice([-0.8, 0.8], len(labels)), small), -1.0, 1.0)


def _exp(interval: Interval | None) -> Interval | None:
    return interval and Interval(math.exp(interval.low), math.exp(interval.high), interval.method)


def _share(intervals: Intervals, values: np.ndarray, labels: np.ndarray) -> Interval | None:
    return intervals.proportion(values, labels)


def streams() -> list[Stream]:
    """One for every family of metrics by token, and the rare events that break estimates of variance."""

    def log_mean(intervals: Intervals, values: np.ndarray, labels: np.ndarray) -> Interval | None:
        return _exp(intervals.mean(values, labels))

    def unbounded(intervals: Intervals, values: np.ndarray, labels: np.ndarray) -> Interval | None:
        return intervals.mean(values, labels)

    def score(intervals: Intervals, values: np.ndarray, labels: np.ndarray) -> Interval | None:
        return intervals.bounded_mean(values, labels, -1.0, 1.0)

    def ratio(values: np.ndarray) -> float:
        return math.exp(mean(values))

    worse = NotWorse(metric="*", why="known", margin=0.02)
    broken = AtMost(metric="*", why="as in the gate ship", limit=0.05)
    agreement, kl = DIVERGENCE["divergence.top1_agreement"], DIVERGENCE["divergence.kl_mean"]
    nothing = Metric(name="flips", unit="share", better="lower")
    return [
        Stream("perplexity ratio", RATIO, worse, 1.0, 1.02,
               _nll(lambda g, n: 0.05 * g.normal(size=n)), log_mean, ratio),
        Stream("perplexity ratio, outliers", RATIO, worse, 1.0, 1.02,
               _nll(lambda g, n: 0.03 * g.standard_t(3, n)), log_mean, ratio),
        Stream("perplexity ratio, log-normal damage", RATIO, worse, 1.0, 1.02,
               _log_normal_damage, log_mean, ratio, beside=broken),
        Stream("perplexity ratio, 5 % of documents carry it", RATIO, worse, 1.0, 1.02,
               _damage_of_few, log_mean, ratio, beside=broken),
        Stream("KL mean", kl, AtMost(metric="*", why="known", limit=0.05), 0.0, 0.05, _kl, unbounded),
        Stream("top-1 agreement", agreement, AtLeast(metric="*", why="known", limit=0.95), 1.0, 0.95, _same, _share),
        Stream("top-1 agreement, few documents touched", agreement, AtLeast(metric="*", why="known", limit=0.99),
               1.0, 0.99,
               _seldom, _share),
        Stream("flips, 5 %", nothing, AtMost(metric="*", why="known", limit=0.05),
               0.0, 0.05, _flipped, _share, exact=True),
        Stream("flips, 1 %", nothing, AtMost(metric="*", why="known", limit=0.01),
               0.0, 0.01, _flipped, _share, exact=True),
        Stream("Brier score", BRIER, NotWorse(metric="*", why="known", margin=0.01), 0.0, 0.01, _worse_score, score),
    ]  # fmt: skip


def every(step: int, least: int, most: int) -> tuple[int, ...]:
    """Looks after every batch of ``step`` documents."""
    return (*range(least, most, step), most)


def intervals_at(method: Sequential | None, sizes: Sequence[int], number: int, largest: int | None) -> Intervals:
    """Those of a look; None: the ordinary ones, as if it were the only look."""
    if method is None:
        return Intervals()
    seen = sizes[: number + 1]
    if method == "group_sequential":
        return GroupSequential.at(seen, sizes[-1])
    at = Betting.at(seen, sizes[-1])
    return Betting(at.confidence, at.together, at.look, largest=largest)


@dataclass(frozen=True)
class Stopped:
    """Of ``runs``: how many passed and failed, and the mean number of documents until then (or until the last)."""

    runs: int
    passed: int
    failed: int
    documents: float
    covered: int
    """Runs whose interval, where they stopped, holds the truth."""


def stop_early(
    stream: Stream, truth: float, sizes: Sequence[int], method: Sequential | None, runs: int, seed: int = 20_251
) -> Stopped:
    """Draw the documents of ``runs`` runs, look after each of ``sizes``, and stop where the rule is decided."""
    generator = np.random.default_rng([seed, sizes[-1], *stream.name.encode()])
    passed = failed = covered = documents = 0
    for _ in range(runs):
        labels = stream.documents(generator, sizes[-1])
        values = stream.draw(generator, labels, truth)
        ends = np.searchsorted(labels, sizes, side="left")
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            intervals = intervals_at(method, sizes, number, 1 if stream.exact else LONGEST)
            found = stream.measure(values[:end], labels[:end], intervals)
            status = stream.judge(found, values[:end], labels[:end], intervals)
            if status in ("pass", "fail") or size == sizes[-1]:
                break
        passed, failed, documents = passed + (status == "pass"), failed + (status == "fail"), documents + size
        known = found.low is not None and found.high is not None
        covered += known and (found.low or 0.0) - 1e-12 <= truth <= (found.high or 0.0) + 1e-12
    return Stopped(runs, passed, failed, documents / runs, covered)


@cache
def fixed_size(stream_name: str, share: float, runs: int = 400, power: float = 0.8) -> int:
    """The fewest documents of a fixed number that decide so many runs whose damage is this share of what is allowed.

    Found by drawing, with the rule itself on the ordinary interval, and not below the documents of a first look. Power
    of exact intervals goes up and down by steps as documents are added; this is one of the first sizes that reach it.
    """
    stream = next(each for each in streams() if each.name == stream_name)
    truth = stream.neutral + share * (stream.limit - stream.neutral)

    def decides(size: int) -> bool:
        found = stop_early(stream, truth, (size,), None, runs, seed=5)
        return found.passed + found.failed >= power * runs

    high = LEAST
    while not decides(high):
        high *= 2
    low = high // 2
    while high - low > max(1, high // 100) and high > LEAST:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def looks_for(fixed: int, more: float = 1.25, least: int = LEAST) -> tuple[int, ...]:
    """The looks of a suite that may draw ``more`` times as many documents as one would fix."""
    return planned_looks(least, max(least, math.ceil(more * fixed)))

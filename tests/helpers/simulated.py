"""Worlds whose truth is known: what a measure would find on n documents, drawn again and again.

Every family of metrics has at least one, with the estimator that its measure uses. The truth lies exactly at the limit
of the rule, so that every pass is a false one; tokens of a document belong together, and rare events are rare.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from harness.measures._common.item_scores import flips, recovery, scores
from harness.measures._items import TaskScores
from harness.measures._shared import Count, make_sampled
from harness.measures.calibration import BRIER, SQUARED
from harness.measures.divergence import METRICS
from harness.measures.latency import RATIO as LATENCY
from harness.measures.latency import TimedBlocks, _ratio
from harness.measures.perplexity import BROKEN_ABOVE, RATIO, _broken
from harness.records import Measurement, Metric
from harness.rules import Rule
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.statistics import (
    Interval,
    Intervals,
    bounded_mean_interval,
    calibration_shift,
    mean,
    mean_interval,
    proportion_interval,
    quantile_intervals,
    quantiles,
)

Generator = np.random.Generator
DIVERGENCE = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True)
class World:
    """draw(generator, n): what is found on n documents. truth: what an endless number of them would show.

    beside: a second rule of the gate, and what is found for it on the documents that the generator draws from the same
    state. A run passes only if both rules pass, as under the gate ship.
    """

    name: str
    draw: Callable[[Generator, int], Measurement]
    truth: float
    rule: Rule
    beside: tuple[Rule, Callable[[Generator, int], Measurement]] | None = None


def tokens(generator: Generator, n: int) -> np.ndarray:
    """The documents of tokens: 16 to 80 in each, which is little for a document."""
    return np.repeat(np.arange(n), generator.integers(16, 81, n))


Effects = Callable[[Generator, int], np.ndarray]
"""What each of n documents loses more than 0.02 nats a token."""


def losses(document: Effects, generator: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """What tokens lose, and their documents: effects of documents as given, and of tokens with a deviation of 0.2."""
    labels = tokens(generator, n)
    return 0.02 + document(generator, n)[labels] + 0.2 * generator.normal(size=len(labels)), labels


def nll(document: Effects) -> Callable[[Generator, int], Measurement]:
    """Perplexity ratio of exp(0.02)."""

    def draw(generator: Generator, n: int) -> Measurement:
        delta, labels = losses(document, generator, n)
        found = Intervals().mean(delta, labels)
        around = found and Interval(math.exp(found.low), math.exp(found.high), found.method)
        return make_sampled(RATIO, "m", Count(len(labels), n), change=math.exp(mean(delta)), interval=around)

    return draw


def broken(document: Effects) -> Callable[[Generator, int], Measurement]:
    """The share of broken documents, as the measure counts it."""
    return lambda generator, n: _broken(*losses(document, generator, n), BROKEN_ABOVE, Intervals())


def log_normal_damage(generator: Generator, n: int) -> np.ndarray:
    return 0.02 * np.exp(1.2 * generator.normal(size=n) - 1.2**2 / 2) - 0.02


def damage_of_few(generator: Generator, n: int) -> np.ndarray:
    """One document in twenty carries all damage, 0.4 nats a token."""
    return np.where(generator.random(n) < 0.05, 0.4, 0.0) - 0.02


OWN, TOKEN = 0.5, 1.2
"""Deviations of ln KL between documents and between tokens of one: skewed, as divergences are."""


def kl(generator: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = tokens(generator, n)
    own = OWN * generator.normal(size=n)[labels]
    return 0.02 * np.exp(own + TOKEN * generator.normal(size=len(labels))), labels


def kl_mean(generator: Generator, n: int) -> Measurement:
    values, labels = kl(generator, n)
    metric, count = DIVERGENCE["divergence.kl_mean"], Count(len(labels), n)
    return make_sampled(metric, "m", count, change=mean(values), interval=mean_interval(values, labels, skewed=True))


def damaged_kl(document: Effects) -> Callable[[Generator, int], Measurement]:
    """KL mean of 0.02: what documents lose is their KL, as it is where the reference is right."""

    def draw(generator: Generator, n: int) -> Measurement:
        labels = tokens(generator, n)
        own = (0.02 + document(generator, n))[labels]
        values = own * np.exp(TOKEN * generator.normal(size=len(labels)) - TOKEN**2 / 2)
        metric, count = DIVERGENCE["divergence.kl_mean"], Count(len(labels), n)
        return make_sampled(metric, "m", count, change=mean(values), interval=Intervals().mean(values, labels))

    return draw


def kl_quantile(probability: float) -> Callable[[Generator, int], Measurement]:
    def draw(generator: Generator, n: int) -> Measurement:
        values, labels = kl(generator, n)
        metric, count = DIVERGENCE["divergence.kl_p99"], Count(len(labels), n)
        (value,), (around,) = quantiles(values, [probability]), quantile_intervals(values, labels, [probability])
        return make_sampled(metric, "m", count, change=value, interval=around)

    return draw


def agreement(generator: Generator, n: int) -> Measurement:
    """Same top token with 0.95, more often in some documents than in others."""
    labels = tokens(generator, n)
    same = generator.random(len(labels)) < generator.beta(19, 1, n)[labels]
    metric, count = DIVERGENCE["divergence.top1_agreement"], Count(len(labels), n)
    return make_sampled(metric, "m", count, change=mean(same), interval=proportion_interval(same, labels))


def cell(generator: Generator, lost: float, gained: float, n: int, copies: int = 1) -> TaskScores:
    """n documents of a task; an item is right before alone, after alone, or 60 : 40 on both or neither side.

    copies: items of a document share half of their fate; 1: each item is a document.
    """
    items = n * copies
    chances = [lost, gained, 0.6 * (1 - lost - gained), 0.4 * (1 - lost - gained)]
    outcome = generator.choice(4, size=items, p=chances)
    document = np.arange(n).repeat(copies)
    shared = generator.choice(4, size=n, p=chances)[document]
    if copies > 1:
        outcome = np.where(generator.random(items) < 0.5, shared, outcome)
    reference, variant = np.isin(outcome, (0, 2)) * 1.0, np.isin(outcome, (1, 2)) * 1.0
    rows = pd.DataFrame(
        {
            "doc_hash": [f"h{number}" for number in document], "reference_score": reference, "variant_score": variant,
            "reference_answer": reference.astype(str), "variant_answer": variant.astype(str), "better": "higher",
            "output_type": "multiple_choice", "bos": "both", "cut": False,
            "reference_loglikelihoods": [(0.0, 0.0)] * items, "variant_loglikelihoods": [(0.0, 0.0)] * items,
        }
    )  # fmt: skip
    return TaskScores("a", "accuracy", rows)


def accuracy(lost: float, gained: float, copies: int = 1) -> Callable[[Generator, int], Measurement]:
    return lambda generator, n: _found(next(scores(cell(generator, lost, gained, n, copies), Intervals())))


def kept(lost: float, gained: float) -> Callable[[Generator, int], Measurement]:
    return lambda generator, n: _found(next(recovery(cell(generator, lost, gained, n), Intervals())))


def flipped(lost: float, gained: float, copies: int = 1) -> Callable[[Generator, int], Measurement]:
    """The share of flips to wrong."""
    return lambda generator, n: _found(list(flips(cell(generator, lost, gained, n, copies), Intervals()))[1])


def _found(entry: object) -> Measurement:
    assert isinstance(entry, Measurement), entry
    return entry


SHARPER = 1.8
BRIER_TRUTH, SQUARED_TRUTH = 0.01077, 0.01065
"""Changes of both scores in this world, from 240 000 documents (standard error 5e-5); a slow test draws them again."""


Side = tuple[np.ndarray, np.ndarray]


def confident(generator: Generator, n: int) -> tuple[Side, Side, np.ndarray]:
    """A calibrated reference and an overconfident variant; documents are easier or harder than they look."""
    labels = tokens(generator, n)
    sure = generator.beta(4, 2, len(labels))
    odds = np.log(sure / (1 - sure))
    chance = 1 / (1 + np.exp(-odds - 0.5 * generator.normal(size=n)[labels]))
    right = generator.random(len(labels)) < chance
    again = np.where(generator.random(len(labels)) < 0.05, generator.random(len(labels)) < chance, right)
    return (sure, right * 1.0), (1 / (1 + np.exp(-SHARPER * odds)), again * 1.0), labels


def brier(generator: Generator, n: int) -> Measurement:
    (p, right), (q, after), labels = confident(generator, n)
    shift = (q - after) ** 2 - (p - right) ** 2
    around = bounded_mean_interval(shift, labels, -1.0, 1.0)
    return make_sampled(BRIER, "m", Count(len(labels), n), change=mean(shift), interval=around)


def squared_error(generator: Generator, n: int) -> Measurement:
    reference, variant, labels = confident(generator, n)
    found = calibration_shift(reference, variant, labels)
    return make_sampled(SQUARED, "m", Count(len(labels), n), change=found.change, interval=found.interval)


def latency(generator: Generator, n: int) -> Measurement:
    """n blocks A B B A; neighbouring blocks share slow phases of the machine, on one side more than on the other."""
    drift = np.zeros(n)
    shocks = 0.02 * generator.normal(size=n)
    for at in range(n):
        drift[at] = shocks[at] + (0.5 * drift[at - 1] if at else 0.0)
    first = np.exp(0.01 * generator.normal(size=(n, 2)))
    second = 1.05 * np.exp(drift[:, None] + 0.01 * generator.normal(size=(n, 2)))
    return _ratio(LATENCY, "decode", TimedBlocks(first, second), None)


def worlds() -> list[World]:
    """All of them, each with a rule whose limit is the truth."""
    spread = math.hypot(OWN, TOKEN)
    kl_truth = 0.02 * math.exp(spread**2 / 2)
    made: list[World] = [
        _worse("perplexity ratio", nll(lambda g, n: 0.05 * g.normal(size=n)), math.exp(0.02), RATIO),
        _worse("perplexity ratio, outliers", nll(lambda g, n: 0.03 * g.standard_t(3, n)), math.exp(0.02), RATIO),
        *_damaged("log-normal damage", log_normal_damage),
        *_damaged("5 % of documents carry it", damage_of_few),
        _below("KL mean", kl_mean, kl_truth),
    ]
    for probability in (0.5, 0.95, 0.99):
        truth = 0.02 * math.exp(spread * float(stats.norm.ppf(probability)))
        made.append(_below(f"KL, quantile {probability:g}", kl_quantile(probability), truth))
    made += [
        _above("top-1 agreement", agreement, 0.95),
        _drop("accuracy, 5 % discordant", 0.04, 0.01),
        _drop("accuracy, 3 % discordant, all lost", 0.03, 0.0),
        _drop("accuracy, 1 % discordant, all lost", 0.01, 0.0),
        _drop("accuracy, three items a document", 0.04, 0.01, 3),
        _above("recovery", kept(0.04, 0.01), 1 - 0.03 / (0.04 + 0.6 * 0.95)),
        _below("flips to wrong, 5 %", flipped(0.05, 0.02), 0.05),
        _below("flips to wrong, 1 %", flipped(0.01, 0.0), 0.01),
        _below("flips to wrong, three items a document", flipped(0.05, 0.02, 3), 0.05),
        _worse("Brier score", brier, BRIER_TRUTH, BRIER),
        _worse("squared calibration error", squared_error, SQUARED_TRUTH, SQUARED),
        _below("latency ratio, drifting", latency, 1.05),
    ]
    return made


def _worse(name: str, draw: Callable[[Generator, int], Measurement], truth: float, metric: Metric) -> World:
    return World(
        name, draw, truth, NotWorse(metric="*", why="the truth lies at this limit", margin=truth - metric.neutral)
    )


def _damaged(name: str, document: Effects) -> Iterator[World]:
    """Perplexity and KL, each beside the rule on broken documents of the gate ship."""
    beside = AtMost(metric="*", why="as in the gate ship", limit=0.05), broken(document)
    alone = _worse(f"perplexity ratio, {name}", nll(document), math.exp(0.02), RATIO)
    yield replace(alone, beside=beside)
    yield replace(_below(f"KL mean, {name}", damaged_kl(document), 0.02), beside=beside)


def _below(name: str, draw: Callable[[Generator, int], Measurement], truth: float) -> World:
    return World(name, draw, truth, AtMost(metric="*", why="the truth lies at this limit", limit=truth))


def _above(name: str, draw: Callable[[Generator, int], Measurement], truth: float) -> World:
    return World(name, draw, truth, AtLeast(metric="*", why="the truth lies at this limit", limit=truth))


def _drop(name: str, lost: float, gained: float, copies: int = 1) -> World:
    margin = lost - gained
    return World(
        name,
        accuracy(lost, gained, copies),
        -margin,
        NotWorse(metric="*", why="the truth lies at this limit", margin=margin),
    )


@dataclass(frozen=True)
class Outcome:
    """Of ``runs`` draws: how many passed, had an interval, and had one that holds the truth, or lies beside it."""

    world: World
    n: int
    runs: int
    passed: int
    intervals: int
    covered: int
    too_good: int
    """Intervals that lie wholly on the good side of the truth."""


def simulate(world: World, n: int, runs: int, seed: int = 20_251) -> Outcome:
    """Draw, judge and count. The seed, the world's name and n fix every number."""
    generator = np.random.default_rng([seed, n, *world.name.encode()])
    passed = intervals = covered = too_good = 0
    good_is_low = not isinstance(world.rule, AtLeast) and world.draw(generator, 3).better == "lower"
    for _ in range(runs):
        same = copy.deepcopy(generator)
        found = world.draw(generator, n)
        judged = [world.rule.judge(found, identical=False)]
        if world.beside is not None:
            rule, draw = world.beside
            judged.append(rule.judge(draw(same, n), identical=False))
        passed += all(decision.status == "pass" for decision in judged)
        if found.low is None or found.high is None:
            continue
        intervals += 1
        # Rounding of the two ends must not decide where a count equals the truth.
        covered += found.low - 1e-12 <= world.truth <= found.high + 1e-12
        too_good += found.high < world.truth if good_is_low else found.low > world.truth
    return Outcome(world, n, runs, passed, intervals, covered, too_good)

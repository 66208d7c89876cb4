"""False passes and coverage in small simulations; tests/bench/coverage.py makes the whole page."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from harness.records import Measurement
from harness.statistics import calibration_shift, mean, mean_interval
from tests.helpers.results import interval
from tests.helpers.simulated import (
    BRIER_TRUTH,
    SQUARED_TRUTH,
    Generator,
    World,
    confident,
    damage_of_few,
    kl,
    losses,
    simulate,
    worlds,
)

WORLDS = {world.name: world for world in worlds()}
EXACT = {name for name in WORLDS if name.startswith(("accuracy", "flips", "recovery"))}
"""Counts of few changed answers: their intervals hold the truth more often than asked, never less."""


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_truth_at_the_limit_seldom_passes(world: World) -> None:
    """150 draws of 20 documents: 5 % and three standard errors are 10 %."""
    found = simulate(world, 20, 150)
    assert found.passed / found.runs <= 0.10
    if world.beside:
        assert found.passed == 0, "20 documents cannot exclude that one in twenty is broken"
        return
    assert found.intervals == 0 or found.covered / found.intervals >= 0.88 or found.intervals < 30


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 50, 200])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_false_passes_and_coverage(world: World, n: int) -> None:
    """600 draws: 5 % and three standard errors are 7.7 %, 93 % less three are 89.9 %."""
    found = simulate(world, n, 600)
    assert found.passed / found.runs <= 0.077
    if found.intervals > 300 and not world.beside:
        assert found.covered / found.intervals >= 0.899
        if world.name not in EXACT and n > 10:
            assert found.covered / found.intervals <= 0.991


@pytest.mark.parametrize("world", [world for world in WORLDS.values() if world.beside], ids=lambda world: world.name)
def test_damage_of_few_documents_passes_neither_with_enough_of_them(world: World) -> None:
    """1000 draws of 80 documents: 5 % and three standard errors are 7.1 %."""
    assert simulate(world, 80, 1000).passed / 1000 <= 0.071


def test_without_the_rule_on_broken_documents_and_with_symmetric_intervals_it_would() -> None:
    world = WORLDS["perplexity ratio, 5 % of documents carry it"]

    def symmetric(generator: Generator, n: int) -> Measurement:
        delta, labels = losses(damage_of_few, generator, n)
        found = interval(mean_interval(delta, labels))
        ends = {"change": math.exp(mean(delta)), "low": math.exp(found.low), "high": math.exp(found.high)}
        return world.draw(generator, n).model_copy(update=ends)

    assert simulate(dataclasses.replace(world, draw=symmetric, beside=None), 20, 150).passed / 150 > 0.2


@pytest.mark.slow
def test_the_truths_without_a_formula_are_what_large_draws_show() -> None:
    reference, variant, labels = confident(np.random.default_rng(3), 20_000)
    squares = [(sure - right) ** 2 for sure, right in (reference, variant)]
    assert float(np.mean(squares[1] - squares[0])) == pytest.approx(BRIER_TRUTH, abs=7e-4)
    assert calibration_shift(reference, variant, labels).change == pytest.approx(SQUARED_TRUTH, abs=7e-4)


def test_tokens_taken_for_independent_would_be_noticed() -> None:
    """What the simulation is for: an interval that forgets documents passes many times as often as it may."""
    world = WORLDS["KL mean"]

    def forgetful(generator: Generator, n: int) -> Measurement:
        values, labels = kl(generator, n)
        plain = interval(mean_interval(values, range(len(labels)), skewed=True))
        return world.draw(generator, n).model_copy(
            update={"change": mean(values), "low": plain.low, "high": plain.high}
        )

    worse = simulate(dataclasses.replace(world, draw=forgetful), 50, 200)
    assert worse.passed / worse.runs > 0.15
    assert worse.covered / worse.runs < 0.8, "and holds the truth far less often"

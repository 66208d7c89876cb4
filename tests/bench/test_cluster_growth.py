"""The simulation of a sweep adds up: nothing is lost, the head is what limits where its work is all there is."""

from __future__ import annotations

import pytest

from tests.bench.cluster_growth import AT_ONCE, BLOCKS, TASK_UNITS, Cluster, Constants

QUICK = Constants(dispatch=1e-5, commit=5e-3, sent=280_000, stored=250_000, journal=242)


def simulate(workers: int, variants: int = 12, commit: float = 5e-3) -> dict[str, float]:
    constants = Constants(QUICK.dispatch, commit, QUICK.sent, QUICK.stored, QUICK.journal)
    return Cluster(8, variants, workers, constants).simulate()


def test_rows_and_weights_are_those_of_the_units() -> None:
    found = simulate(3)
    assert found["GB of rows"] == pytest.approx(12 * (BLOCKS + TASK_UNITS) * QUICK.sent / 1e9)
    assert found["TB read"] == pytest.approx(12 / AT_ONCE[8] * (1 + AT_ONCE[8]) * 16e9 / 1e12), "one set a worker"


def test_more_workers_are_quicker_until_the_head_is_all_that_is_left() -> None:
    hours = [simulate(workers)["hours"] for workers in (1, 3, 12)]
    assert hours[0] > 2.5 * hours[1] > hours[1] > hours[2]
    slow = simulate(12, commit=60.0)
    assert slow["head busy"] > 0.95
    assert slow["hours"] == pytest.approx(12 * (BLOCKS + TASK_UNITS) * 60.0 / 3600, rel=0.1)

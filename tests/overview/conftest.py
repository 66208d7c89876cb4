"""Runs for pages about several of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.records import Run
from tests.helpers.made_run import Made

MakeRun = Callable[..., Run]


@pytest.fixture
def alike(made: dict[str, Made]) -> MakeRun:
    """A made-up run with another name, verdict, size and loss."""

    def make(name: str, verdict: str = "pass", size: float = 2e6, kl: float = 0.01, **more: Any) -> Run:
        run = made[verdict].run
        sizes = {"memory.weight_bytes": {"variant": size, "change": size / 1e7, "low": None, "high": None}}
        losses = {"divergence.kl_mean": {"change": kl, "variant": None, "low": kl * 0.9, "high": kl * 1.1}}
        measurements = [m.model_copy(update=(sizes | losses).get(m.name, {})) for m in run.measurements]
        return run.model_copy(update={"name": name, "measurements": tuple(measurements), **more})

    return make

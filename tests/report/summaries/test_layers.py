"""The error of a module's output split into gain and noise, against vectors of which both are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from harness.report.display import percent
from harness.report.summaries.layers import draw_depth, draw_parts, read_layers
from harness.report.summaries.suite_tables import SuiteTables
from tests.helpers.made_tables import MadeTables


def suite_of(gains: list[float], noises: list[float]) -> SuiteTables:
    """Two documents of blocks whose outputs are (1 + gain)·y plus noise at right angles to y."""
    rng, rows = np.random.default_rng(3), []
    for document in range(2):
        for depth, (gain, noise) in enumerate(zip(gains, noises, strict=True)):
            y, z = np.linalg.qr(rng.normal(size=(64, 2)))[0].T * (3.0 + document)
            out = (1 + gain) * y + noise * z
            rows.append((document, f"model.layers.{depth}", "block", depth, *map(float, sums(y, out))))
    columns = [
        "document", "module", "kind", "depth", "sum_squared_error", "sum_squared_reference", "sum_squared_variant",
        "dot",
    ]  # fmt: skip
    return SuiteTables("core", MadeTables({"layers": pd.DataFrame(rows, columns=columns)}))


def sums(y: np.ndarray, out: np.ndarray) -> tuple[float, float, float, float]:
    return ((out - y) ** 2).sum(), (y**2).sum(), (out**2).sum(), (y * out).sum()


def test_gain_and_noise_are_those_that_were_put_in() -> None:
    gains, noises = [0.0, -0.02, 0.1], [0.05, 0.0, 1e-6]
    found = read_layers(suite_of(gains, noises))
    assert found is not None
    assert [block.gain for block in found.blocks] == pytest.approx(gains, abs=1e-12)
    # The square of a gain that is known to 1e-16 bounds what is known of a noise beside it.
    assert [block.noise for block in found.blocks] == pytest.approx(noises, abs=1e-7)
    for block in found.blocks:
        assert block.error**2 == pytest.approx(block.gain**2 + block.noise**2, rel=1e-9)


def test_the_drawing_names_the_block_with_the_largest_gain_and_its_sign() -> None:
    found = read_layers(suite_of([0.01, -0.2, 0.03], [0.1, 0.1, 0.1]))
    assert found is not None
    drawn = draw_parts(found)
    assert "largest gain −20\u202f% after block 1" in drawn
    assert "block 0: gain +1" in drawn


def test_the_largest_error_is_the_highest_point_of_the_chart() -> None:
    found = read_layers(suite_of([0.0, 0.0, 0.0], [0.1, 0.4, 0.3]))
    assert found is not None
    largest, jump = found.largest(), found.jump()
    assert largest is not None
    assert jump is not None
    assert (largest.block, jump.block) == (1, 1)
    assert f"largest relative error {percent(largest.error)} after block 1" in draw_depth(found)
    grows_late = read_layers(suite_of([0.0] * 3, [0.3, 0.31, 0.29]))
    assert grows_late is not None
    assert (grows_late.largest() or grows_late.blocks[0]).block == 1
    assert (grows_late.jump() or jump).block == 0

"""Observers against the same method on everything at once."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.formats import Format, quantize
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP8_E4M3, Grid, integer
from harness.numerics.observers import SIDE_BINS, Histogram, Percentile, make_observer
from harness.numerics.range_methods import find_limits
from harness.numerics.ranges import Limits, min_max

WHOLE = Blocks("tensor")
GRIDS = [integer(8), integer(4), integer(4, symmetric=False), FP8_E4M3]


def activations(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(640, 50, generator=generator) * torch.linspace(0.5, 2, 50)
    x[:, 7] *= 6
    return x


def observed(method: str, x_NI: Tensor, grid: Grid, percentile: float = 99.0, size: int = 64) -> Limits:
    watching = make_observer(method, percentile, WHOLE)
    for part in x_NI.split(size):
        watching.add(part)
    return watching.limits(Format(grid, WHOLE))


def error(x: Tensor, grid: Grid, limits: Limits | None) -> float:
    return float((quantize(x, Format(grid, WHOLE), limits).values - x).double().square().sum())


def between_neighbours(limit: float, x: Tensor, percentile: float) -> bool:
    """Whether a limit lies between the values around a percentile, or where they are near 0 at 0, to two bins."""
    ordered, slack = x.flatten().sort().values, 4 * float(x.abs().max()) / SIDE_BINS
    rank = percentile / 100 * (len(ordered) - 1)
    below, above = (ordered[min(max(int(rank) + i, 0), len(ordered) - 1)].item() for i in (-1, 2))
    return max(0.0, below) - slack <= limit <= max(0.0, above) + slack


def histogram(parts: list[Tensor]) -> Histogram:
    seen = Percentile(99)
    for part in parts:
        seen.add(part)
    return seen


@pytest.mark.parametrize("blocks", [WHOLE, Blocks("channel", axis=1)])
def test_extremes_are_those_of_everything_at_once(blocks: Blocks) -> None:
    x = activations()
    x[:, 3], x[:, 4] = x[:, 3].abs(), 0
    watching = make_observer("min_max", 99.9, blocks)
    for part in x.split(100):
        watching.add(part[None])
    found, expected = watching.limits(Format(integer(8), blocks)), min_max(blocks.split(x))
    assert torch.equal(found.low, expected.low)
    assert torch.equal(found.high, expected.high)


@given(
    st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_growing_loses_no_count_and_order_does_not_matter(parts: list[list[float]], random: Random) -> None:
    tensors = [torch.tensor(part) for part in parts]
    x = torch.cat(tensors)
    whole = histogram([x])
    assert int(whole.counts.sum()) == len(x)
    shuffled = list(tensors)
    random.shuffle(shuffled)
    for order in (tensors, shuffled):
        other = histogram(order)
        assert torch.equal(other.counts, whole.counts)
        assert other.exponent == whole.exponent
    expected = torch.zeros_like(whole.counts)
    for value in x.double().tolist():
        expected[SIDE_BINS + (int(value // whole.width) if whole.width else 0)] += 1
    assert torch.equal(whole.counts, expected)
    assert whole.extremes.low == min(0.0, x.min())
    assert whole.extremes.high == max(0.0, x.max())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.99, 100.0])
def test_percentiles_are_right_to_a_bin(grid: Grid, percentile: float) -> None:
    for x in (activations(), activations().relu(), -activations().abs()):
        found = observed("percentile", x, grid, percentile)
        if grid.symmetric:
            assert between_neighbours(found.high.item(), x.abs(), percentile)
            assert found.low.item() == -found.high.item()
        else:
            assert between_neighbours(found.high.item(), x, 50 + percentile / 2)
            assert between_neighbours(-found.low.item(), -x, 50 + percentile / 2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_squared_error_is_nearly_the_least(grid: Grid) -> None:
    for x in (activations(), activations().relu()):
        best = error(x, grid, find_limits(x, Format(grid, WHOLE), "mse"))
        assert error(x, grid, observed("mse", x, grid)) <= 1.02 * best
        assert best < error(x, grid, None)


@pytest.mark.parametrize("grid", GRIDS[:3], ids=str)
def test_entropy_cuts_an_outlier_wherever_it_comes(grid: Grid) -> None:
    x = torch.randn(400, 100, generator=torch.Generator().manual_seed(0))
    early, late = x.clone(), x.clone()
    early[0, 0], late[-1, -1] = 60, 60
    first, last = (observed("entropy", each, grid).high.item() for each in (early, late))
    assert first == last
    assert 1 <= first <= 8
    assert observed("entropy", early.relu(), integer(8, symmetric=False)).low.item() == 0


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse", "entropy"])
def test_limits_do_not_depend_on_the_batches(method: str) -> None:
    x = activations()
    whole, parts = (observed(method, x, integer(8), size=size) for size in (640, 9))
    assert torch.equal(whole.low, parts.low)
    assert torch.equal(whole.high, parts.high)


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse", "entropy"])
def test_zeros_constants_and_extremes_have_limits(method: str) -> None:
    for value in (0.0, 1e-42, 1e30, 3.4e38, -7.0):
        x = torch.full((20, 20), value)
        found = observed(method, x, integer(8))
        rounded = quantize(x, Format(integer(8), WHOLE), found).values
        assert bool(torch.isfinite(rounded).all())
        if abs(value) > 1e-30:
            assert torch.allclose(rounded, x, rtol=0.01)


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse", "entropy"])
def test_refusals(method: str) -> None:
    watching = make_observer(method, 99.9, WHOLE)
    with pytest.raises(ValueError, match="no activations were observed"):
        watching.limits(Format(integer(8), WHOLE))
    with pytest.raises(ValueError, match="NaN or infinity"):
        watching.add(torch.tensor([1.0, torch.inf]))
    watching.add(torch.ones(2, 100))
    with pytest.raises(ValueError, match="observed per tensor, expected per channel"):
        watching.limits(Format(integer(8), Blocks("channel")))
    with pytest.raises(ValueError, match="cannot be observed per group"):
        make_observer(method, 99.9, Blocks("group", 4))
    if method != "min_max":
        with pytest.raises(ValueError, match="cannot be observed per channel"):
            make_observer(method, 99.9, Blocks("channel"))


def test_too_few_activations_for_a_histogram_and_odd_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="100 activations were observed"):
        observed("entropy", torch.ones(1, 100), integer(8))
    with pytest.raises(ValueError, match="percentile"):
        make_observer("percentile", 101, WHOLE)
    with pytest.raises(ValueError, match="expected min_max, percentile, mse or entropy"):
        make_observer("median", 99, WHOLE)

"""Ranges against loops over blocks and clips, numpy's percentiles, and a plain KL calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.entropy import clip_share
from harness.numerics.formats import MXFP4, MXFP8_E4M3, NVFP4, Format, quantize
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP8_E4M3, NF4, Integer, integer
from harness.numerics.range_methods import find_limits
from harness.numerics.ranges import Limits, min_max
from harness.numerics.scales import DOUBLE

FORMATS = [
    Format(integer(2), Blocks("group", 16)),
    Format(integer(4), Blocks("tensor")),
    Format(integer(4, full_range=True), Blocks("group", 30)),
    Format(integer(4, symmetric=False), Blocks("group", 32)),
    Format(integer(3, symmetric=False), Blocks("channel", axis=1)),
    Format(integer(4), Blocks("block", 12)),
    Format(FP8_E4M3, Blocks("channel")),
    Format(NF4, Blocks("group", 64)),
    MXFP4,
    MXFP8_E4M3,
    NVFP4,
    Format(NF4, Blocks("group", 64), DOUBLE),
    Format(integer(4, symmetric=False), Blocks("group", 16), DOUBLE),
]
METHODS = ("percentile", "mse")


def label(form: Format) -> str:
    affine = "" if form.grid.symmetric else "-affine"
    return f"{form.name}{affine}-{form.blocks.kind}{form.blocks.size or ''}-{form.scales.kind}"


def heavy(rows: int = 20, columns: int = 70, seed: int = 0) -> Tensor:
    """Values with outliers, and rows of zeros and of constants."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) + 0.2
    x[torch.rand(rows, columns, generator=generator) > 0.98] *= 15
    x[1], x[2] = 0, 0.7
    return x


def block_errors(x: Tensor, form: Format, limits: Limits | None) -> Tensor:
    """Squared error against the values as they were, block by block."""
    difference = (quantize(x, form, limits).values - x).double()
    return form.blocks.split(difference).square().sum(-1)


@pytest.mark.parametrize("form", FORMATS, ids=label)
@given(seed=st.integers(0, 1000))
@settings(max_examples=6, deadline=None)
def test_mse_is_never_worse_than_min_max(form: Format, seed: int) -> None:
    x = heavy(seed=seed)
    found, plain = block_errors(x, form, find_limits(x, form, "mse")), block_errors(x, form, None)
    if form.scales.separate:
        assert bool((found <= plain * (1 + 1e-9)).all())
    assert found.sum() <= plain.sum() * (1 + 1e-9)


@pytest.mark.parametrize("form", [form for form in FORMATS if form.grid.symmetric and form.scales.separate], ids=label)
def test_no_clip_of_a_fine_search_is_much_better(form: Format) -> None:
    x = heavy()
    everything = min_max(form.blocks.split(x))
    least = torch.full(everything.low.shape, torch.inf, dtype=torch.float64)
    for share in torch.linspace(0.01, 1, 300).tolist():
        tried = Limits(everything.low * share, everything.high * share)
        least = torch.minimum(least, block_errors(x, form, tried))
    found = block_errors(x, form, find_limits(x, form, "mse"))
    assert found.sum() <= 1.02 * least.sum()


def test_both_ends_of_an_affine_grid_are_searched() -> None:
    """An outlier at one end: the other end must not be cut with it."""
    x = torch.cat([torch.linspace(-1, 1, 2000), torch.tensor([6.0])])[None]
    form = Format(integer(3, symmetric=False), Blocks("tensor"))
    found = find_limits(x, form, "mse")
    assert found is not None
    least = min(
        (float(block_errors(x, form, Limits(torch.tensor([-low / 40]), torch.tensor([high / 40])))), low, high)
        for low in range(20, 60, 2)
        for high in range(20, 241, 4)
    )
    assert float(block_errors(x, form, found)) <= 1.01 * least[0]
    assert found.low.item() == pytest.approx(-least[1] / 40, rel=0.1)


def test_the_saturation_of_power_of_two_scales_is_avoided_where_that_pays() -> None:
    x = torch.full((1, 32), 7.9)
    found = find_limits(x, MXFP8_E4M3, "mse")
    assert block_errors(x, MXFP8_E4M3, found).sum() < block_errors(x, MXFP8_E4M3, None).sum()


@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("blocks", [Blocks(), Blocks("group", 30), Blocks("channel", axis=1), Blocks("block", 15)])
def test_percentiles_are_numpys_and_padding_does_not_count(percentile: float, blocks: Blocks) -> None:
    x = heavy().double()
    x[x == 0] = 0.01  # So that what is 0 in a block is padding.
    pieces = [piece[piece != 0].numpy() for piece in blocks.split(x).reshape(-1, blocks.split(x).shape[-1])]
    symmetric = find_limits(x, Format(integer(8), blocks), "percentile", percentile)
    affine = find_limits(x, Format(integer(8, symmetric=False), blocks), "percentile", percentile)
    assert symmetric is not None
    assert affine is not None
    sizes = [np.percentile(np.abs(piece), percentile) for piece in pieces]
    assert symmetric.high.flatten().tolist() == pytest.approx(sizes, rel=1e-12)
    assert symmetric.low.flatten().tolist() == pytest.approx([-size for size in sizes], rel=1e-12)
    cut = (100 - percentile) / 2
    lows = [min(0.0, np.percentile(piece, cut)) for piece in pieces]
    highs = [max(0.0, np.percentile(piece, 100 - cut)) for piece in pieces]
    assert affine.low.flatten().tolist() == pytest.approx(lows, rel=1e-9, abs=1e-12)
    assert affine.high.flatten().tolist() == pytest.approx(highs, rel=1e-9, abs=1e-12)


def test_a_block_of_almost_nothing_but_zeros_keeps_its_range() -> None:
    x = torch.zeros(1, 200)
    x[0, 3] = 5
    found = find_limits(x, Format(integer(4), Blocks()), "percentile", 90)
    assert found is not None
    assert found.high.item() == 5


@pytest.mark.parametrize("percentile", [0.0, 100.1])
def test_percentiles_that_are_none_are_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        find_limits(heavy(), FORMATS[0], "percentile", percentile)


# --- entropy ------------------------------------------------------------------------------------------------


def divergence(bins: list[float], kept: int, levels: int) -> float:
    """KL(P ‖ Q) of a histogram cut after ``kept`` bins, by loops; a symmetric grid of levels 0 … levels − 1."""
    p = bins[:kept]
    p[-1] += sum(bins[kept:])
    level = [round((j + 0.5) / kept / (1 / (levels - 1))) for j in range(kept)]
    q = [0.0] * kept
    for each in set(level):
        members = [j for j in range(kept) if level[j] == each]
        filled = [j for j in members if p[j] > 0]
        for j in filled:
            q[j] = sum(bins[k] for k in members) / len(filled)
    total, inside = sum(p), sum(bins[:kept])
    return sum(p[j] / total * math.log(p[j] / total / (max(q[j], 1e-4) / inside)) for j in range(kept) if p[j] > 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [3, 4])
def test_the_clip_has_the_least_divergence(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(3, 4000, generator=generator).abs()
    sizes[:, :5] += 4
    counts = torch.stack([torch.histc(row, 128, 0, float(row.max())) for row in sizes]).double()
    found = clip_share(counts, integer(bits), torch.ones(3, dtype=torch.bool))
    for row, share in zip(counts.tolist(), found.tolist(), strict=True):
        bins = [row[1], *row[1:]]
        every = {kept: divergence(bins, kept, 2 ** (bits - 1)) for kept in range(128, 7, -1)}
        assert divergence(bins, round(share * 128), 2 ** (bits - 1)) == pytest.approx(min(every.values()), rel=1e-9)


def test_entropy_cuts_a_far_outlier_and_keeps_a_uniform_range() -> None:
    x = torch.randn(4, 8192, generator=torch.Generator().manual_seed(0))
    x[1, 0] = 40
    x[2] = torch.linspace(-3, 3, 8192)
    x[3] = 0
    found = find_limits(x, Format(integer(8), Blocks("channel")), "entropy")
    assert found is not None
    assert 2 <= found.high[1] <= 8
    assert found.high[2] == pytest.approx(3, rel=0.02)
    assert found.high[3] == 0
    affine = find_limits(x.relu(), Format(integer(8, symmetric=False), Blocks("channel")), "entropy")
    assert affine is not None
    assert affine.low.tolist() == [0] * 4
    assert 2 <= affine.high[1] <= 8


def test_padding_is_in_no_histogram() -> None:
    x = torch.randn(3, 400, generator=torch.Generator().manual_seed(0)) + 2
    form, short = Format(integer(4), Blocks("group", 256)), Format(integer(4), Blocks("group", 144))
    found = find_limits(x, form, "entropy")
    alone = find_limits(x[:, 256:].contiguous(), short, "entropy")
    assert found is not None
    assert alone is not None
    assert torch.equal(found.high[:, 1], alone.high[:, 0])


@pytest.mark.parametrize(("width", "group"), [(256, 64), (300, 256)])
def test_blocks_too_small_for_a_histogram_are_refused(width: int, group: int) -> None:
    with pytest.raises(ValueError, match=r"has (64|44) values, and range: entropy needs at least 128"):
        find_limits(heavy(3, width), Format(integer(4), Blocks("group", group)), "entropy")


# --- all methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS, ids=label)
@pytest.mark.parametrize("method", METHODS)
def test_limits_hold_zero_and_make_sense_for_any_size(form: Format, method: str) -> None:
    for scale in (1.0, 1e-30, 1e-42, 1e36):
        x = heavy() * scale
        found = find_limits(x, form, method)
        assert found is not None
        assert bool(torch.isfinite(found.low).all() & torch.isfinite(found.high).all())
        assert bool((found.low <= 0).all() & (found.high >= 0).all())
        values = quantize(x, form, found).values
        assert bool(torch.isfinite(values).all())
        assert bool((values[x == 0] == 0).all())
    assert block_errors(torch.zeros(4, 64), form, find_limits(torch.zeros(4, 64), form, method)).sum() == 0


@pytest.mark.parametrize("form", FORMATS, ids=label)
@pytest.mark.parametrize("method", METHODS)
def test_a_power_of_two_scales_limits(form: Format, method: str) -> None:
    plain, scaled = (find_limits(x, form, method) for x in (heavy(), heavy() * 2.0**-13))
    assert plain is not None
    assert scaled is not None
    assert torch.equal(plain.low * 2.0**-13, scaled.low)
    assert torch.equal(plain.high * 2.0**-13, scaled.high)


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse", "entropy"])
def test_values_that_are_not_finite_are_refused_by_every_method(method: str) -> None:
    x = torch.ones(2, 200)
    x[1, 3] = torch.nan
    form = Format(Integer("int4", 4, True), Blocks())
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(x, form, find_limits(x, form, method))


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="expected min_max, percentile, mse or entropy"):
        find_limits(torch.ones(2, 4), FORMATS[0], "median")

"""The two searches of AWQ against loops written from their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.awq import compute_scale, gram_error, relative_size, search_clip, search_scale
from harness.numerics.formats import NVFP4, Format, quantize
from harness.numerics.granularity import Blocks
from harness.numerics.grids import integer
from harness.numerics.ranges import Limits, min_max
from harness.numerics.scales import DOUBLE


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uneven(tokens: int, channels: int, seed: int = 0) -> Tensor:
    """Inputs whose channels differ in size by three orders of magnitude."""
    return draws(tokens, channels, seed=seed) * torch.logspace(-2, 1, channels, dtype=torch.float64)


def output_error(x: Tensor, weight: Tensor, replaced: Tensor) -> float:
    """‖ x Wᵀ − x Ŵᵀ ‖², one number at a time."""
    total = 0.0
    for row in range(len(x)):
        for channel in range(len(weight)):
            difference = sum(
                x[row, j].item() * (replaced[channel, j] - weight[channel, j]).item() for j in range(x.shape[1])
            )
            total += difference**2
    return total


def rounded(values: list[float], largest: float, bits: int) -> list[float]:
    """Symmetric integers of one group whose scale spans ±largest."""
    top = 2 ** (bits - 1) - 1
    scale = largest / top
    return [max(-top, min(top, round(value / scale))) * scale if scale else 0.0 for value in values]


def test_scales_follow_the_formula() -> None:
    means = [0.5, 2.0, 8.0, 0.03125]
    for exponent in (0.0, 0.25, 0.5, 1.0):
        powers = [mean**exponent for mean in means]
        middle = math.sqrt(max(powers) * min(powers))
        found = compute_scale(torch.tensor(means, dtype=torch.float64), exponent)
        assert found.tolist() == pytest.approx([power / middle for power in powers], rel=1e-12)
        assert (found.max() * found.min()).item() == pytest.approx(1, rel=1e-12)


def test_channels_that_were_never_active_are_left_alone() -> None:
    means = torch.tensor([0.0, 4.0, 1.0], dtype=torch.float64)
    assert compute_scale(means, 1.0).tolist() == pytest.approx([1.0, 2.0, 0.5])
    assert compute_scale(torch.zeros(3), 1.0).tolist() == [1, 1, 1]


def test_relative_sizes_are_means_over_all_weights() -> None:
    form = Format(integer(4), Blocks("group", 2))
    weights = [torch.tensor([[1.0, -2.0, 4.0, 1.0]]), torch.tensor([[3.0, 3.0, 0.0, 0.0], [0.0, 1.0, -5.0, 1.0]])]
    expected = [(0.5 + 1 + 0) / 3, (1 + 1 + 1) / 3, (1 + 0 + 1) / 3, (0.25 + 0 + 0.2) / 3]
    assert relative_size(weights, [form, form]).tolist() == pytest.approx(expected)


def test_duo_scales_divide_by_the_size_of_the_weights() -> None:
    means, sizes = torch.tensor([1.0, 4.0]), torch.tensor([0.25, 0.64])
    powers = [1.0 / (0.25**0.5 + 1e-4), 2.0 / (0.64**0.5 + 1e-4)]
    middle = math.sqrt(powers[0] * powers[1])
    assert compute_scale(means, 0.5, sizes).tolist() == pytest.approx([power / middle for power in powers])


def test_the_error_needs_the_inputs_products_only() -> None:
    x, weights = uneven(9, 6), [draws(4, 6, seed=1), draws(3, 6, seed=2)]
    replaced = [weight + 0.1 * draws(*weight.shape, seed=3) for weight in weights]
    expected = sum(output_error(x, old, new) for old, new in zip(weights, replaced, strict=True))
    assert gram_error(x.T @ x, weights, replaced) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("duo", [False, True])
def test_the_scale_is_that_of_a_plain_loop_over_the_grid(duo: bool) -> None:
    x, weights = uneven(40, 8), [draws(5, 8, seed=1), draws(3, 8, seed=2)]
    form = Format(integer(3), Blocks("group", 4))
    means = [sum(abs(value) for value in x[:, j].tolist()) / len(x) for j in range(8)]
    relative = relative_size(weights, [form, form]) if duo else None

    def error_with(scale: list[float]) -> float:
        total = 0.0
        for weight in weights:
            replaced = torch.zeros_like(weight)
            for channel, row in enumerate(weight.tolist()):
                for start in (0, 4):
                    group = [row[j] * scale[j] for j in range(start, start + 4)]
                    for j, value in enumerate(rounded(group, max(map(abs, group)), 3)):
                        replaced[channel, start + j] = value / scale[start + j]
            total += output_error(x, weight, replaced)
        return total

    best, chosen = error_with([1.0] * 8), [1.0] * 8
    plain = best
    for step in range(11):
        exponent = step / 10
        powers = [mean**exponent for mean in means]
        if relative is not None:
            powers = [p / (r ** (1 - exponent) + 1e-4) for p, r in zip(powers, relative.tolist(), strict=True)]
        scale = [power / math.sqrt(max(powers) * min(powers)) for power in powers]
        if error_with(scale) < best:
            best, chosen = error_with(scale), scale
    found = search_scale(
        torch.tensor(means, dtype=torch.float64),
        weights,
        [lambda weight: quantize(weight, form).values] * 2,
        lambda replaced: gram_error(x.T @ x, weights, replaced),
        grid=10,
        relative_I=relative,
    )
    assert found.scale.tolist() == pytest.approx(chosen, rel=1e-9)
    assert [found.error, found.unscaled] == pytest.approx([best, plain], rel=1e-9)
    assert best < 0.7 * plain  # Else the search would have nothing to find here.


def test_no_scaling_wins_where_nothing_is_better() -> None:
    weight = torch.ones(3, 4, dtype=torch.float64)
    found = search_scale(
        torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
        [weight],
        [lambda scaled: quantize(scaled, Format(integer(2), Blocks("group", 4))).values],
        lambda replaced: (replaced[0] - weight).square().sum().item(),
    )
    assert found.exponent is None
    assert found.scale.tolist() == [1, 1, 1, 1]
    assert found.error == found.unscaled == 0


def test_an_error_that_is_no_number_never_wins() -> None:
    errors = iter([1.0, *[float("nan")] * 20])
    found = search_scale(torch.ones(2), [torch.ones(1, 2)], [lambda weight: weight], lambda _: next(errors))
    assert found.exponent is None


def test_the_range_is_that_of_a_plain_loop_over_groups() -> None:
    x, weight = uneven(30, 8), draws(6, 8, seed=5) ** 3
    form = Format(integer(3), Blocks("group", 4))
    found = search_clip(weight, x, form, grid=20)
    assert found is not None
    cut = 0
    for channel in range(6):
        for group, start in enumerate((0, 4)):
            values = weight[channel, start : start + 4].tolist()
            part, largest = x[:, start : start + 4].tolist(), max(map(abs, values))

            def error(limit: float, values: list[float] = values, part: list[list[float]] = part) -> float:
                changed = [new - old for new, old in zip(rounded(values, limit, 3), values, strict=True)]
                return sum(sum(a * b for a, b in zip(row, changed, strict=True)) ** 2 for row in part)

            tried = [largest * (1 - step / 20) for step in range(10)]
            expected = min(tried, key=error)
            cut += expected < largest
            assert max(-found.low[channel, group], found.high[channel, group]) == pytest.approx(
                min(expected, largest), rel=1e-12
            )
    assert 0 < cut < 12


def test_both_ends_of_an_affine_range_are_cut_at_one_size() -> None:
    weight = torch.tensor([[-1.0, -0.2, 0.13, 0.4]], dtype=torch.float64)
    x = torch.tensor([[1e-6, 1.0, 1.0, -1.0]], dtype=torch.float64)
    found = search_clip(weight, x, Format(integer(3, symmetric=False), Blocks("group", 4)))
    assert found is not None
    assert found.low.item() == pytest.approx(-0.7)
    assert found.high.item() == 0.4


FORMATS = [
    Format(integer(3), Blocks("group", 5)),
    Format(integer(3, symmetric=False), Blocks("channel")),
    Format(integer(4), Blocks("tensor")),
    Format(integer(3), Blocks("block", 4)),
    Format(integer(3), Blocks("group", 4), DOUBLE),
    NVFP4,
]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 23), st.integers(1, 40))
def test_clipping_never_makes_the_output_worse(form: Format, seed: int, outputs: int, inputs: int, tokens: int) -> None:
    weight, x = draws(outputs, inputs, seed=seed) ** 3, uneven(tokens, inputs, seed=seed + 1)
    found = search_clip(weight, x, form)
    plain = (quantize(weight, form).values - weight) @ x.T
    clipped = (quantize(weight, form, found).values - weight) @ x.T
    assert clipped.square().sum() <= plain.square().sum() * (1 + 1e-12)


@pytest.mark.parametrize("form", FORMATS[:4])
def test_clipping_helps_every_kind_of_block(form: Format) -> None:
    weight, x = draws(12, 20, seed=4), draws(50, 20, seed=5)
    found = search_clip(weight, x, form)
    assert found is not None
    plain = (quantize(weight, form).values - weight) @ x.T
    clipped = (quantize(weight, form, found).values - weight) @ x.T
    assert clipped.square().sum() < 0.95 * plain.square().sum()


def test_squares_are_judged_by_their_own_part_of_the_output() -> None:
    weight, x, form = draws(5, 6, seed=8), uneven(30, 6, seed=9), Format(integer(3), Blocks("block", 4))
    found = search_clip(weight, x, form)
    assert found is not None
    start = min_max(form.blocks.split(weight))
    for row, rows in enumerate((slice(0, 4), slice(4, 5))):
        for column, columns in enumerate((slice(0, 4), slice(4, 6))):
            errors = []
            for step in range(10):
                cut = start.largest * (1 - step / 20)
                tried = Limits(torch.maximum(start.low, -cut), torch.minimum(start.high, cut))
                change = quantize(weight, form, tried).values[rows, columns] - weight[rows, columns]
                errors.append(output_error(x[:, columns], torch.zeros_like(change), change))
            share = 1 - errors.index(min(errors)) / 20
            assert found.largest[row, column].item() == pytest.approx(start.largest[row, column].item() * share)


def test_blocks_that_only_win_alone_do_not_count() -> None:
    weight, x = draws(12, 20, seed=3), draws(50, 20, seed=4)
    weight = weight.sign() * weight.abs() ** 3
    # Single squares have smaller errors when cut; together their errors add up to a worse output.
    assert search_clip(weight, x, Format(integer(3), Blocks("block", 4))) is None


def test_the_search_starts_from_given_limits() -> None:
    weight, x = draws(4, 8, seed=6), draws(20, 8, seed=7)
    form = Format(integer(3), Blocks("group", 4))
    whole = min_max(form.blocks.split(weight))
    start = Limits(whole.low * 0.5, whole.high * 0.5)
    found = search_clip(weight, x, form, start)
    assert found is not None
    assert bool((found.largest <= start.largest).all())
    assert search_clip(weight, x[:0], form, start) is start
    assert search_clip(weight, x[:0], form) is None


def test_columns_as_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="axis 1"):
        search_clip(draws(3, 4), draws(5, 4), Format(integer(4), Blocks("channel", axis=1)))

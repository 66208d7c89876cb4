"""Gradients of the straight-through estimator and of learned steps, against torch's own operators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.numerics.formats import Format, block_steps, quantize
from harness.numerics.granularity import Blocks
from harness.numerics.grids import FP8_E4M3, NF4, integer
from harness.numerics.ranges import Limits
from harness.training.fake_quantize import LearnedSteps, round_through

TENSOR, CHANNEL = Blocks("tensor"), Blocks("channel")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(x: Tensor, form: Format, limits: Limits | None) -> tuple[Tensor, Tensor, Tensor]:
    leaf, grad = x.clone().requires_grad_(True), drawn(*x.shape, seed=9)
    out = round_through(leaf, form, limits)
    out.backward(grad)
    assert leaf.grad is not None
    return out.detach(), leaf.grad, grad


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("blocks", [TENSOR, CHANNEL])
def test_straight_through_is_that_of_torch(bits: int, symmetric: bool, blocks: Blocks) -> None:
    """torch multiplies by 1/s where we divide by s, so a value between two codes may fall to either side."""
    form, x = Format(integer(bits, symmetric), blocks), drawn(24, 40)
    whole = blocks.split(x)
    limits = Limits(whole.amin(-1) * 0.37, whole.amax(-1) * 0.37)
    out, grad_x, grad = gradient_of(x, form, limits)
    steps = block_steps(whole, form, limits)
    zero = torch.zeros_like(steps.scale) if steps.zero_point is None else steps.zero_point
    low, high = form.grid.code_range  # type: ignore[attr-defined]
    leaf = x.clone().requires_grad_(True)
    quantize_as: Any = torch.fake_quantize_per_tensor_affine
    arguments: tuple[Any, ...] = (float(steps.scale[0]), int(zero[0]), low, high)
    if blocks is CHANNEL:
        quantize_as, arguments = torch.fake_quantize_per_channel_affine, (steps.scale, zero, 0, low, high)
    expected = quantize_as(leaf, *arguments)
    expected.backward(grad)
    edge = ((x / steps.scale.reshape(-1, 1)) % 1 - 0.5).abs() < 1e-4
    assert edge.float().mean() < 0.01
    torch.testing.assert_close(out[~edge], expected.detach()[~edge], rtol=1e-6, atol=0)
    assert leaf.grad is not None
    assert torch.equal(grad_x[~edge], leaf.grad[~edge])
    beyond = grad_x == 0
    assert 0.01 < beyond.float().mean() < 0.95


@pytest.mark.parametrize("grid", [FP8_E4M3, NF4])
def test_floats_and_codebooks_pass_gradients_up_to_their_largest_value(grid: Any) -> None:
    form, x = Format(grid, CHANNEL), drawn(8, 64)
    limits = Limits(x.amin(1) * 0.5, x.amax(1) * 0.5)
    out, grad_x, grad = gradient_of(x, form, limits)
    assert torch.equal(out, quantize(x, form, limits).values)
    ends = torch.maximum(-limits.low, limits.high)[:, None]
    assert torch.equal(grad_x, torch.where(x.abs() <= ends, grad, 0.0))


def test_without_limits_every_value_lies_within_the_grid() -> None:
    for form in (Format(integer(3), Blocks("group", 16)), Format(NF4, Blocks("group", 16))):
        out, grad_x, grad = gradient_of(drawn(6, 40), form, None)
        assert torch.equal(out, quantize(drawn(6, 40), form).values)
        assert torch.equal(grad_x, grad)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("blocks", [TENSOR, CHANNEL])
def test_learned_steps_have_the_gradients_of_torch(bits: int, symmetric: bool, blocks: Blocks) -> None:
    form, x = Format(integer(bits, symmetric), blocks), drawn(16, 48)
    steps = LearnedSteps.of_values(x, form)
    with torch.no_grad():
        steps.scale.mul_(0.37)
    leaf, grad = x.clone().requires_grad_(True), drawn(16, 48, seed=9)
    out = steps(leaf)
    out.backward(grad)
    scale = steps.scale.detach().clone().requires_grad_(True)
    known: Any = steps.zero_point
    zero = torch.zeros_like(scale) if known is None else known.clone()
    zero = zero.detach().requires_grad_(True)
    low, high = form.grid.code_range  # type: ignore[attr-defined]
    other = x.clone().requires_grad_(True)
    if blocks is TENSOR:
        expected = torch._fake_quantize_learnable_per_tensor_affine(other, scale, zero, low, high, steps.factor)
    else:
        expected = torch._fake_quantize_learnable_per_channel_affine(other, scale, zero, 0, low, high, steps.factor)
    expected.backward(grad)
    edge = ((x / scale.detach().reshape(-1, 1)) % 1 - 0.5).abs() < 1e-4
    assert edge.float().mean() < 0.01
    torch.testing.assert_close(out.detach()[~edge], expected.detach()[~edge], rtol=1e-6, atol=0)
    assert leaf.grad is not None
    assert other.grad is not None
    assert torch.equal(leaf.grad[~edge], other.grad[~edge])
    # A value on an edge changes the sum by its gradient times one code.
    slack = (grad.abs() * edge).sum(-1).max().item() * steps.factor if bool(edge.any()) else 0.0
    assert steps.scale.grad is not None
    torch.testing.assert_close(steps.scale.grad, scale.grad, rtol=2e-4, atol=slack + 1e-5)


@pytest.mark.parametrize("blocks", [TENSOR, CHANNEL, Blocks("group", 16)])
def test_learned_steps_begin_as_published(blocks: Blocks) -> None:
    """2·mean|w| / √q_max, and gradients times 1 / √(n·q_max) (Esser et al. 2020, arXiv 1902.08153)."""
    x, form = drawn(8, 48), Format(integer(4), blocks)
    steps = LearnedSteps.of_values(x, form)
    split = blocks.split(x)
    torch.testing.assert_close(steps.scale.detach(), 2 * split.abs().mean(-1) / math.sqrt(7))
    assert steps.factor == 1 / math.sqrt(split.shape[-1] * 7)


def test_the_filling_of_a_short_group_counts_for_nothing() -> None:
    x, form = drawn(3, 20), Format(integer(4), Blocks("group", 16))
    steps = LearnedSteps.of_values(x, form)
    torch.testing.assert_close(steps.scale.detach()[:, 1], 2 * x[:, 16:].abs().mean(1) / math.sqrt(7))


def test_a_step_that_would_become_negative_keeps_its_size() -> None:
    x, form = drawn(4, 32), Format(integer(4), TENSOR)
    steps = LearnedSteps.of_values(x, form)
    expected = steps(x).detach()
    with torch.no_grad():
        steps.scale.neg_()
    assert torch.equal(steps(x).detach(), expected)


def test_gradients_of_learned_steps_are_right_by_finite_differences() -> None:
    """Between its jumps Q(x/s)·s is linear in s; the estimator adds what moves the jumps."""
    form, x = Format(integer(4), TENSOR), torch.tensor([[0.9, -3.2, 40.0, -40.0]])
    steps: Any = LearnedSteps(form, torch.tensor([1.0]), None, 4)
    steps.factor = 1.0
    grads = []
    for place in range(4):
        out = steps(x)
        (found,) = torch.autograd.grad(out[0, place], steps.scale)
        grads.append(float(found))
    assert grads == pytest.approx([1 - 0.9, -3 + 3.2, 7, -7], abs=1e-6)

"""Losses of rows of logits: against float64 by definition, their limits, and a library of the field."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor

from harness.training.objectives import _rows
from harness.training.objectives._rows import divergence, hard_label_loss, map_rows

KINDS = ("forward", "reverse", "jensen_shannon")


def draw(rows: int, vocabulary: int, seed: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    student, teacher = spread * torch.randn(2, rows, vocabulary, generator=chance, dtype=torch.float64)
    return student, teacher


def by_definition(student: Tensor, teacher: Tensor, kind: str, temperature: float, beta: float) -> np.ndarray:
    """Sums of p·log(p/q) of probabilities in double precision."""
    p, q = (np.exp(log_softmax(each.double().numpy() / temperature, axis=-1)) for each in (teacher, student))

    def relative(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.asarray((first * (np.log(first) - np.log(second))).sum(-1))

    if kind == "forward":
        return relative(p, q)
    if kind == "reverse":
        return relative(q, p)
    mixture = beta * p + (1 - beta) * q
    return beta * relative(p, mixture) + (1 - beta) * relative(q, mixture)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(2, 40),
    temperature=st.floats(0.5, 8),
    beta=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
def test_divergences_are_their_definition(
    kind: _rows.Divergence, rows: int, vocabulary: int, temperature: float, beta: float, seed: int
) -> None:
    student, teacher = draw(rows, vocabulary, seed)
    wanted = by_definition(student, teacher, kind, temperature, beta)
    found = divergence(student, teacher, kind, temperature, beta).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    single = divergence(student.float(), teacher.float(), kind, temperature, beta).numpy()
    np.testing.assert_allclose(single, wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rows_do_not_diverge_and_others_do(kind: _rows.Divergence) -> None:
    student, teacher = draw(6, 17, 0)
    assert divergence(student, student, kind).abs().max() < 1e-15
    assert divergence(student, teacher, kind).min() > 0.01


def test_forward_and_reverse_change_places_with_their_arguments() -> None:
    student, teacher = draw(4, 9, 1)
    assert torch.equal(divergence(student, teacher, "forward"), divergence(teacher, student, "reverse"))
    assert not torch.allclose(divergence(student, teacher, "forward"), divergence(student, teacher, "reverse"))


def test_jensen_shannon_tends_to_the_two_others() -> None:
    # JSD(β)/β tends to KL(teacher‖student) where β tends to 0 (Agarwal et al. 2024), and the other way round at 1.
    student, teacher = draw(5, 11, 2, spread=1.0)
    tiny = 1e-6
    forward = divergence(student, teacher, "jensen_shannon", beta=tiny) / tiny
    torch.testing.assert_close(forward, divergence(student, teacher, "forward"), rtol=1e-4, atol=0)
    reverse = divergence(student, teacher, "jensen_shannon", beta=1 - tiny) / tiny
    torch.testing.assert_close(reverse, divergence(student, teacher, "reverse"), rtol=1e-4, atol=0)


def test_at_high_temperature_logits_are_matched() -> None:
    # τ²·KL tends to half the variance of the differences of logits (Hinton et al. 2015, section 2.1).
    student, teacher = draw(5, 13, 3)
    limit = (teacher - student).var(-1, unbiased=False) / 2
    found = [float((t**2 * divergence(student, teacher, "forward", t) / limit - 1).abs().max()) for t in (10, 100, 1e4)]
    assert found[0] > found[1] > found[2]
    assert found[2] < 1e-3


def test_temperature_one_is_the_plain_divergence() -> None:
    student, teacher = draw(5, 13, 4)
    assert torch.equal(divergence(student, teacher, "forward", 1.0), divergence(student, teacher))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences_and_reach_the_student_alone(kind: _rows.Divergence) -> None:
    student, teacher = draw(3, 7, 5)
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda rows: divergence(rows, teacher.detach(), kind, 2.0, 0.3), student)
    divergence(student, teacher, kind).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_factor_of_the_temperature_keeps_the_size_of_gradients() -> None:
    student, teacher = draw(40, 50, 6, spread=0.5)
    sizes = []
    for temperature in (1.0, 8.0):
        rows = student.clone().requires_grad_(True)
        (temperature**2 * divergence(rows, teacher, "forward", temperature)).sum().backward()
        assert rows.grad is not None
        sizes.append(float(rows.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_it_is_compared(dtype: torch.dtype) -> None:
    student, teacher = (each.to(dtype) for each in draw(6, 31, 7))
    wanted = by_definition(student, teacher, "forward", 1.0, 0.5)
    np.testing.assert_allclose(divergence(student, teacher).numpy(), wanted, rtol=1e-4)


def test_the_hard_loss_is_minus_the_log_probability_of_the_token() -> None:
    student, _ = draw(6, 12, 8)
    targets = torch.tensor([0, 11, 3, 3, 7, 1])
    wanted = -log_softmax(student.numpy(), axis=-1)[np.arange(6), targets.numpy()]
    np.testing.assert_allclose(hard_label_loss(student, targets).numpy(), wanted, rtol=1e-12)


def test_chunks_change_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = draw(23, 10, 9)
    found = []
    for values in (1 << 25, 40):
        monkeypatch.setattr(_rows, "CHUNK_VALUES", values)
        rows = student.clone().requires_grad_(True)
        sizes: list[int] = []

        def losses(own: Tensor, other: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(own))
            return divergence(own, other)[:, None]

        by_row = map_rows(losses, [rows, teacher], 20)
        by_row.mean().backward()
        assert rows.grad is not None
        found.append((by_row.detach(), rows.grad, sizes))
    (whole, whole_grad, once), (parts, parts_grad, several) = found
    assert torch.equal(whole, parts)
    torch.testing.assert_close(whole_grad, parts_grad, rtol=1e-12, atol=0)
    assert once == [23]
    # Two rows at a time, and each again for its gradients.
    assert sum(several) == 2 * 23
    assert max(several) == 2


def test_chunks_are_not_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "CHUNK_VALUES", 1000)
    head = torch.randn(8, 100, requires_grad=True)
    states = torch.randn(64, 8, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        map_rows(lambda rows: (rows @ head).log_softmax(-1)[:, :1], [states], 100)
    assert sum(kept) < 64 * 100


def test_rows_that_do_not_exist_have_no_loss() -> None:
    with pytest.raises(ValueError, match="no position"):
        map_rows(lambda rows: rows, [torch.zeros(0, 4)], 4)

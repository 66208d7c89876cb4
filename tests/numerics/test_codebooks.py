"""Codebooks against dynamic programming written with loops, against scikit-learn, and by what k-means means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from harness.numerics import codebooks
from harness.numerics.codebooks import exact_centroids, k_means, lloyd, nearest

torch.set_num_threads(1)


def error(values: Tensor, weights: Tensor, centroids: Tensor) -> Tensor:
    """Σ w (x − c)² of every row, every value with its nearest centroid."""
    distance = (values[..., None] - centroids[:, None]).square().amin(-1)
    return (weights * distance).sum(1)


def least_error(values: Tensor, weights: Tensor, count: int) -> float:
    """The optimum for one row, by the recurrence over all stretches of the sorted row."""
    order = values.argsort()
    x: list[float] = values[order].tolist()
    w: list[float] = weights[order].tolist()

    def alone(start: int, end: int) -> float:
        mass = sum(w[start:end])
        mean = sum(w[i] * x[i] for i in range(start, end)) / mass if mass else 0.0
        return sum(w[i] * (x[i] - mean) ** 2 for i in range(start, end))

    best = [alone(0, end) for end in range(len(x) + 1)]
    for _ in range(count - 1):
        best = [min(best[start] + alone(start, end) for start in range(end + 1)) for end in range(len(x) + 1)]
    return best[-1]


def heavy(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Normal values, and weights as uneven as squared gradients are."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=random, dtype=torch.float64)
    return values, torch.randn(rows, columns, generator=random, dtype=torch.float64) ** 4


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_exact_solution_is_the_optimum(data: st.DataObject) -> None:
    size, count = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 6))
    rows = st.lists(st.integers(-9, 9), min_size=size, max_size=size)
    masses = st.lists(st.sampled_from([0, 0, 1, 2, 7, 1000]), min_size=size, max_size=size)
    values = torch.tensor([data.draw(rows), data.draw(rows)], dtype=torch.float64)
    weights = torch.tensor([data.draw(masses), data.draw(masses)], dtype=torch.float64)
    for solve in (exact_centroids, k_means):
        centroids = solve(values, weights, count)
        assert centroids.shape == (2, count)
        assert (centroids.diff(dim=1) >= 0).all()
        for row in range(2):
            mine = weights[row] if weights[row].any() else torch.ones(size, dtype=torch.float64)
            found = error(values[row, None], mine[None], centroids[row, None]).item()
            assert found == pytest.approx(least_error(values[row], mine, count), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("columns", "count"), [(37, 8), (40, 3), (33, 16)])
def test_rows_of_odd_lengths_are_solved_exactly_side_by_side(columns: int, count: int) -> None:
    values, weights = heavy(3, columns, columns)
    found = error(values, weights, exact_centroids(values, weights, count))
    wanted = [least_error(values[row], weights[row], count) for row in range(3)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


def test_scikit_learn_finds_nothing_better_and_the_same_when_it_tries_often() -> None:
    values, weights = heavy(1, 60, 5)
    library = KMeans(4, n_init=60, random_state=0, tol=0).fit(values.T.numpy(), sample_weight=weights[0].numpy())
    found = exact_centroids(values, weights, 4)
    assert error(values, weights, found).item() == pytest.approx(library.inertia_, rel=1e-9)
    assert found[0].tolist() == pytest.approx(sorted(library.cluster_centers_[:, 0]), rel=1e-9)


@pytest.mark.parametrize(("count", "within"), [(4, 1.02), (16, 1.02)])
def test_long_rows_come_close_to_the_optimum(count: int, within: float) -> None:
    values, weights = heavy(6, 1000, count)
    best = error(values, weights, exact_centroids(values, weights, count))
    found = error(values, weights, k_means(values, weights, count))
    assert (found >= best * (1 - 1e-9)).all()
    assert (found <= best * within).all()
    quantiles = values.quantile((torch.arange(count).double() + 0.5) / count, dim=1).T.contiguous()
    assert error(values, weights, lloyd(values, weights, quantiles)).sum() > 1.01 * found.sum()


def test_many_centroids_come_close_to_the_optimum_too() -> None:
    values, weights = heavy(2, 300, 1)
    best = error(values, weights, exact_centroids(values, weights, 64))
    found = error(values, weights, k_means(values, weights, 64))
    assert (found < error(values, weights, exact_centroids(values, weights, 32))).all()
    assert (found < 4 * best).all()


def test_the_result_is_a_fixed_point_of_lloyds_algorithm() -> None:
    values, weights = heavy(4, 700, 2)
    centroids = k_means(values, weights, 8)
    codes = nearest(values, centroids)
    for row in range(4):
        for code in range(8):
            inside = codes[row] == code
            mean = (weights[row] * values[row])[inside].sum() / weights[row][inside].sum()
            assert centroids[row, code].item() == pytest.approx(mean.item(), rel=1e-9)
    assert torch.allclose(lloyd(values, weights, centroids), centroids, rtol=1e-12, atol=0)


def test_no_steps_change_nothing_and_each_step_helps() -> None:
    values, weights = heavy(2, 300, 3)
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).repeat(2, 1)
    assert lloyd(values, weights, start, steps=0) is start
    errors = [error(values, weights, lloyd(values, weights, start, steps=steps)).sum().item() for steps in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[1] < errors[0]


def test_a_cluster_without_weight_keeps_its_centroid() -> None:
    values = torch.tensor([[0.0, 1.0, 9.0]], dtype=torch.float64)
    start = torch.tensor([[0.0, 5.0, 9.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    assert lloyd(values, weights, start).tolist() == [[0.5, 5.0, 9.0]]


@pytest.mark.parametrize("count", [2, 4, 40])
def test_few_distinct_values_are_all_kept(count: int) -> None:
    values = torch.tensor([[0.0] * 600, [3.0, -2.0] * 300], dtype=torch.float32)
    centroids = k_means(values, torch.rand(2, 600) + 0.1, count)
    lost = error(values.double(), torch.ones(2, 600).double(), centroids)
    assert lost.tolist() == pytest.approx([0.0, 0.0], abs=1e-20)
    assert torch.isfinite(centroids).all()


def test_a_row_not_longer_than_its_codebook_is_the_codebook() -> None:
    values = torch.tensor([[2.0, -1.0, 0.5]])
    assert k_means(values, torch.zeros(1, 3), 4).tolist() == [[-1.0, 0.5, 2.0, 2.0]]


def test_rows_without_weight_count_all_values_alike() -> None:
    values, _ = heavy(2, 300, 4)
    assert torch.equal(k_means(values, torch.zeros_like(values), 4), k_means(values, torch.ones_like(values), 4))


def test_only_ratios_of_weights_matter_and_rows_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    values, weights = heavy(5, 200, 6)
    together = k_means(values, weights, 4)
    scale = 2.0 ** torch.arange(-60, 60, 24).double()[:, None]
    assert torch.equal(k_means(values, weights * scale, 4), together)
    assert torch.equal(torch.cat([k_means(values[i, None], weights[i, None], 4) for i in range(5)]), together)
    monkeypatch.setattr(codebooks, "CHUNK_VALUES", 400)
    assert torch.equal(k_means(values, weights, 4), together)


def test_the_nearest_centroid_is_the_nearest() -> None:
    values, _ = heavy(3, 50, 7)
    centroids = heavy(3, 9, 8)[0].sort(1).values
    assert torch.equal(nearest(values, centroids), (values[..., None] - centroids[:, None]).abs().argmin(-1))
    assert nearest(torch.tensor([[0.5, 1.5]]), torch.tensor([[0.0, 1.0, 2.0]])).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("values", "weights", "count", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 2, "expected two equal matrices"),
        (torch.zeros(3), torch.zeros(3), 2, "expected two equal matrices"),
        (torch.zeros(0, 3), torch.zeros(0, 3), 2, "expected two equal matrices"),
        (torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 1.0]]), 2, "negative"),
        (torch.zeros(1, 3), torch.tensor([[1.0, float("nan"), 1.0]]), 2, "NaN"),
        (torch.zeros(1, 3), torch.ones(1, 3), 0, "0 centroids"),
    ],
)
def test_what_cannot_be_clustered_is_refused(values: Tensor, weights: Tensor, count: int, message: str) -> None:
    for solve in (k_means, exact_centroids):
        with pytest.raises(ValueError, match=message):
            solve(values, weights, count)

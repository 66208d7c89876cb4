"""The dense-and-sparse decomposition, from its definition."""

from __future__ import annotations

import pytest
import torch

from harness.numerics.codebooks import k_means
from harness.numerics.decomposition import decompose, sparse_mask, stored_bits

torch.set_num_threads(1)


def pair(rows: int = 8, columns: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=random), torch.randn(rows, columns, generator=random) ** 4


def test_the_largest_and_then_the_most_sensitive_weights_stay() -> None:
    weight, fisher = pair()
    mask = sparse_mask(weight, fisher, 0.02, 0.01)
    everything = [(row, column) for row in range(8) for column in range(50)]
    largest = sorted(everything, key=lambda at: -abs(weight[at].item()))[:8]
    rest = sorted(set(everything) - set(largest), key=lambda at: -fisher[at].item())[:4]
    assert {tuple(at) for at in mask.nonzero().tolist()} == {*largest, *rest}


def test_without_gradients_nothing_is_sensitive() -> None:
    weight, fisher = pair()
    assert not sparse_mask(weight, torch.zeros_like(fisher), 0.0, 0.1).any()


def test_sparse_weights_are_exact_and_weigh_nothing_in_the_codebooks() -> None:
    weight, fisher = pair()
    found = decompose(weight, fisher, 2, 0.05, 0.02)
    mask = sparse_mask(weight, fisher, 0.05, 0.02)
    assert found.sparse == mask.sum() == 28
    assert torch.equal(found.values[mask], weight[mask])
    changed = torch.where(mask, weight * 3, weight)
    again = decompose(changed, fisher, 2, 0.05, 0.02)
    assert torch.equal(again.values[~mask], found.values[~mask])
    assert max(len(row[~keep].unique()) for row, keep in zip(found.values, mask, strict=True)) <= 4


def test_the_rest_goes_to_the_weighted_codebook_of_its_row() -> None:
    weight, fisher = pair()
    found = decompose(weight, fisher, 3, 0.0, 0.0)
    centroids = k_means(weight, fisher, 8).float()
    distance = (weight[..., None] - centroids[:, None]).abs()
    assert torch.equal(found.values, centroids.gather(1, distance.argmin(-1)))
    unweighted = decompose(weight, torch.ones_like(fisher), 3, 0.0, 0.0)
    lost = [(fisher * (weight - each.values).square()).sum() for each in (found, unweighted)]
    assert lost[0] < 0.7 * lost[1]


def test_a_row_of_which_nothing_is_known_counts_its_dense_weights_alike() -> None:
    weight, fisher = pair()
    fisher[3] = 0
    weight[3, :3] = torch.tensor([50.0, -60.0, 70.0])
    found = decompose(weight, fisher, 2, 3 / 400, 0.0)
    alone = k_means(weight[3, None, 3:], torch.ones(1, 47), 4).float()
    assert torch.equal(found.values[3, :3], weight[3, :3])
    kept = found.values[3, 3:].unique()
    lost = (weight[3, 3:] - found.values[3, 3:]).square().sum()
    best = (weight[3, 3:, None] - alone).square().amin(1).sum()
    assert len(kept) == 4
    assert lost == pytest.approx(best.item(), rel=0.02)


def test_zeros_and_rows_that_are_sparse_as_a_whole() -> None:
    assert not decompose(torch.zeros(2, 40), torch.ones(2, 40), 2, 0.1, 0.1).values.any()
    weight = torch.cat([torch.full((1, 4), 9.0), torch.ones(1, 4)])
    assert torch.equal(decompose(weight, torch.ones(2, 4), 2, 0.5, 0.0).values, weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight, fisher = pair()
    with pytest.raises(ValueError, match="NaN or infinity"):
        decompose(torch.where(weight > 2, bad, weight), fisher, 4, 0.0, 0.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        decompose(weight, torch.where(weight > 2, bad, fisher), 4, 0.0, 0.0)


def test_stored_bits_count_codes_codebooks_and_sparse_rows() -> None:
    assert stored_bits((10, 100), 4, 0) == 1000 * 4 + 10 * 16 * 16
    assert stored_bits((10, 100), 3, 7) == 1000 * 3 + 10 * 8 * 16 + 7 * (16 + 16) + 11 * 32
    assert stored_bits((1, 2**16 + 1), 3, 7) == (2**16 + 1) * 3 + 8 * 16 + 7 * (16 + 32) + 2 * 32

"""Codebooks: every row of a matrix gets its own few values, by weighted k-means in one dimension.

For a row x_1 … x_N with weights w_1 … w_N ≥ 0 the centroids c_1 ≤ … ≤ c_K minimise Σ w_n (x_n − c(n))², where c(n) is
the nearest centroid. In one dimension clusters are stretches of the sorted row, so the optimum can be computed:

    best_K(i) = min over c ≤ i of best_{K−1}(c) + cost(c, i)        cost(c, i): the error of one cluster x_c … x_{i−1}

and the c that is best moves to the right with i, so that the ends solved first bound the search for those between
them (Wu 1991; Grønlund et al. 2017, arXiv 1701.07204): O(K N log N) instead of O(K N²). Lloyd's algorithm alone costs
O(N) a step, but where it stops depends on where it starts: from quantiles, at an error up to three times the optimum
for 16 centroids and 256 values. `k_means` therefore solves long rows exactly after merging neighbours into few bins,
and lets Lloyd's algorithm finish on all values: within a thousandth of the optimum at a fraction of its cost.

Legend: R rows, N values of a row, K centroids, B bins, M ends solved at a time. All is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_VALUES = 2**18
"""Values that are clustered at a time: what a processor's cache holds together with its temporaries."""
BINS = 8
"""Bins for each centroid that rows are merged into before the exact solution."""
MOST_EXACT = 32
"""Above so many centroids Lloyd's algorithm starts from where they would be if they were many, and may end at two to
three times the least error: the exact solution costs K² here, and so many are rarely wanted."""
LLOYD_STEPS = 100
"""At most; real rows need some ten until no assignment changes."""


def k_means(values_RN: Tensor, weights_RN: Tensor, count: int) -> Tensor:
    """``count`` centroids for every row, ascending, [R, K] in float64.

    weights: one for each value; a row whose weights are all 0 is clustered as if they were all 1. A row with
    fewer distinct values than centroids has some centroids twice. The same input gives the same centroids.
    Raises ValueError for shapes that differ, and weights that are negative or not finite.
    """
    _check(values_RN, weights_RN, count)
    rows = max(1, CHUNK_VALUES // values_RN.shape[1])
    pieces = zip(torch.split(values_RN, rows), torch.split(weights_RN, rows), strict=True)
    return torch.cat([_k_means(values, weights, count) for values, weights in pieces])


def exact_centroids(values_RN: Tensor, weights_RN: Tensor, count: int) -> Tensor:
    """Like `k_means`, and never anything but the optimum: O(K N log N), all rows at a time."""
    _check(values_RN, weights_RN, count)
    return _optimal_centroids(*_sort_rows(values_RN, weights_RN), count)


def lloyd(values_RN: Tensor, weights_RN: Tensor, centroids_RK: Tensor, steps: int = LLOYD_STEPS) -> Tensor:
    """Lloyd's algorithm from ascending centroids, until no assignment changes or for ``steps`` steps.

    A cluster without weight keeps its centroid.
    """
    codes_RN = None
    for _ in range(steps):
        before, codes_RN = codes_RN, nearest(values_RN, centroids_RK)
        if before is not None and torch.equal(before, codes_RN):
            break
        mass_RK, moment_RK = _sums(values_RN, weights_RN, codes_RN, centroids_RK.shape[1])
        centroids_RK = torch.where(mass_RK > 0, moment_RK / mass_RK, centroids_RK)
    return centroids_RK


def nearest(values_RN: Tensor, centroids_RK: Tensor) -> Tensor:
    """Codes [R, N] (int64) of the nearest of ascending centroids; halfway between two, the smaller."""
    edges = (centroids_RK[:, 1:] + centroids_RK[:, :-1]) / 2
    return torch.searchsorted(edges.contiguous(), values_RN.to(edges.dtype).contiguous())


def _k_means(values_RN: Tensor, weights_RN: Tensor, count: int) -> Tensor:
    values_RN, weights_RN = _sort_rows(values_RN, weights_RN)
    missing, bins = count - values_RN.shape[1], BINS * count
    if missing >= 0:
        return torch.cat([values_RN, values_RN[:, -1:].expand(-1, missing)], 1)
    if count <= MOST_EXACT and values_RN.shape[1] <= bins:
        return _optimal_centroids(values_RN, weights_RN, count)
    spread_RN = _spread(values_RN, weights_RN)
    if count <= MOST_EXACT:
        codes_RN = (spread_RN * bins).long().clamp_(max=bins - 1)
        merged_RB = _means(values_RN, weights_RN, codes_RN, bins)
        start_RK = _optimal_centroids(merged_RB, _sums(values_RN, weights_RN, codes_RN, bins)[0], count)
    else:
        share_K = (torch.arange(count, device=spread_RN.device, dtype=torch.float64) + 0.5) / count
        first_RK = torch.searchsorted(spread_RN, share_K.expand(len(spread_RN), -1).contiguous())
        start_RK = values_RN.gather(1, first_RK.clamp_(max=values_RN.shape[1] - 1))
    return lloyd(values_RN, weights_RN, start_RK)


def _check(values_RN: Tensor, weights_RN: Tensor, count: int) -> None:
    if values_RN.shape != weights_RN.shape or values_RN.ndim != 2 or not values_RN.numel():
        shapes = f"{tuple(values_RN.shape)} and {tuple(weights_RN.shape)}"
        raise ValueError(f"values and weights have the shapes {shapes}, expected two equal matrices")
    if not bool((torch.isfinite(weights_RN) & (weights_RN >= 0)).all()):
        raise ValueError("the weights of a clustering are negative, NaN or infinite")
    if count < 1:
        raise ValueError(f"{count} centroids, expected at least 1")


def _sort_rows(values_RN: Tensor, weights_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in ascending order, with their weights, of which the largest is 1."""
    weights = weights_RN.double()
    largest = weights.amax(1, keepdim=True)
    weights = torch.where(largest > 0, weights / torch.where(largest > 0, largest, 1), 1.0)
    sorted_RN, order = values_RN.double().sort(dim=1, stable=True)
    return sorted_RN, weights.gather(1, order)


def _spread(values_RN: Tensor, weights_RN: Tensor) -> Tensor:
    """Where sorted values lie between 0 and 1 if centroids are spread as the best ones are when there are many.

    Their density goes with (density of the values · weight)^⅓ (Panter and Dite 1951), which between neighbours
    with the gap d is (w / d)^⅓, hence w^⅓ d^⅔ centroids.
    """
    between = torch.maximum(weights_RN[:, 1:], weights_RN[:, :-1])
    grown = (between * values_RN.diff(dim=1).square()).pow(1 / 3).cumsum(1)
    spread = torch.cat([torch.zeros_like(values_RN[:, :1]), grown], 1)
    return spread / torch.where(spread[:, -1:] > 0, spread[:, -1:], 1.0)


def _sums(values_RN: Tensor, weights_RN: Tensor, codes_RN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Σ w and Σ w x of every cluster, [R, K]."""
    zero = values_RN.new_zeros(len(values_RN), count)
    return zero.scatter_add(1, codes_RN, weights_RN), zero.scatter_add(1, codes_RN, weights_RN * values_RN)


def _means(values_RN: Tensor, weights_RN: Tensor, codes_RN: Tensor, count: int) -> Tensor:
    """The weighted mean of every cluster; the plain mean of one without weight, a neighbour's of an empty one."""
    mass, moment = _sums(values_RN, weights_RN, codes_RN, count)
    members, total = _sums(values_RN, torch.ones_like(weights_RN), codes_RN, count)
    means = torch.where(mass > 0, moment / mass, total / members)
    ascending = torch.where(members > 0, means, -torch.inf).cummax(1).values
    return torch.maximum(ascending, torch.where(members > 0, means, torch.inf).amin(1, keepdim=True))


def _optimal_centroids(values_RN: Tensor, weights_RN: Tensor, count: int) -> Tensor:
    """Optimal centroids of sorted rows."""
    starts_RK = _optimal_starts(values_RN, weights_RN, count)
    positions = torch.arange(values_RN.shape[1], device=values_RN.device).expand_as(values_RN).contiguous()
    codes_RN = torch.searchsorted(starts_RK, positions, right=True) - 1
    return _means(values_RN, weights_RN, codes_RN, count)


def _optimal_starts(values_RN: Tensor, weights_RN: Tensor, count: int) -> Tensor:
    """Where each of the optimal clusters of sorted rows starts, [R, K]."""
    rows, n = values_RN.shape
    around = values_RN - values_RN.mean(1, keepdim=True)  # Smaller numbers, so that less is lost in the sums.
    sums_R2N = torch.zeros(rows, 2, n + 1, dtype=torch.float64, device=values_RN.device)
    torch.cumsum(torch.stack([weights_RN, weights_RN * around], 1), 2, out=sums_R2N[..., 1:])
    ends = torch.arange(n + 1, device=values_RN.device).expand(rows, -1)
    best_RN, chosen = _gain(sums_R2N, torch.zeros_like(ends), ends), []
    for _ in range(count - 1):
        best_RN, start_RN = _one_more_cluster(best_RN, sums_R2N)
        chosen.append(start_RN)
    starts, end = [], torch.full((rows, 1), n, device=values_RN.device)
    for start_RN in reversed(chosen):
        end = start_RN.gather(1, end)
        starts.append(end)
    return torch.cat([torch.zeros_like(end), *reversed(starts)], 1)


def _one_more_cluster(best_RN: Tensor, sums_R2N: Tensor) -> tuple[Tensor, Tensor]:
    """For every end 0 … N the gain of the best clustering with one cluster more, and where its last one starts.

    Gains are maximised: Σ (Σ w x)² / Σ w over the clusters, which is Σ w x² minus the error.
    """
    last = best_RN.shape[1] - 1
    best, start = best_RN.clone(), torch.zeros_like(best_RN, dtype=torch.int64)
    stride = 1 << last.bit_length()
    while stride > 1:
        ends_M = torch.arange(stride // 2, last + 1, stride, device=best.device)
        if len(ends_M):
            best[:, ends_M], start[:, ends_M] = _solve(best_RN, sums_R2N, ends_M, start[:, ends_M - stride // 2])
        stride //= 2
    return best, start


def _solve(before_RN: Tensor, sums_R2N: Tensor, ends_M: Tensor, lowest_RM: Tensor) -> tuple[Tensor, Tensor]:
    """Best gain and start for the ends of one round, whose starts lie between those of the ends around them.

    The start of end t lies in lowest[t] … lowest[t + 1] (N for the last). All these stretches laid end to end are as
    long in every row, N + M, so that a round is one matrix: column p belongs to end t(p) and tries the start p − t(p).
    """
    rows, last = len(before_RN), before_RN.shape[1] - 1
    count = len(ends_M)
    columns = torch.arange(last + count, device=before_RN.device)
    steps = torch.zeros(rows, len(columns), dtype=torch.int64, device=before_RN.device)
    steps.scatter_(1, lowest_RM[:, 1:] + columns[1:count], 1)
    t_RP = steps.cumsum_(1)
    start_RP, end_RP = columns - t_RP, ends_M[t_RP]
    gain_RP = before_RN.gather(1, start_RP) + _gain(sums_R2N, start_RP, end_RP)
    gain_RP.masked_fill_(start_RP > end_RP, -torch.inf)
    most_RM = torch.full((rows, count), -torch.inf, dtype=gain_RP.dtype, device=gain_RP.device)
    most_RM.scatter_reduce_(1, t_RP, gain_RP, "amax")
    start_RP.masked_fill_(gain_RP < most_RM.gather(1, t_RP), last)
    first_RM = torch.full((rows, count), last, device=start_RP.device)
    return most_RM, first_RM.scatter_reduce_(1, t_RP, start_RP, "amin")


def _gain(sums_R2N: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(Σ w x)² / Σ w of the values from ``start`` to before ``end``; 0 without weight."""
    mass = sums_R2N[:, 0].gather(1, end) - sums_R2N[:, 0].gather(1, start)
    moment = sums_R2N[:, 1].gather(1, end) - sums_R2N[:, 1].gather(1, start)
    return torch.where(mass > 0, moment.square_() / mass, 0.0)

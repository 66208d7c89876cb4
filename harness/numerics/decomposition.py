"""Dense-and-sparse decomposition: a few weights in full precision, all others as codes of a codebook per row.

    W = S + codebook(W − S)        S: the largest weights and the most sensitive of the rest

Kim et al. 2023 (SqueezeLLM, arXiv 2306.07629): the codebook minimizes Σ F (w − ŵ)² with F the diagonal of the Fisher
information, so that a loss near its minimum changes least. S is removed first and has no weight in the codebook.

Legend: O output channels (rows), I inputs, K values of a codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.codebooks import k_means, nearest
from harness.numerics.formats import check_tensor

VALUE_BITS = 16
"""Counted size of one codebook value or sparse value."""
POINTER_BITS = 32
"""Counted size of the start offset of a row in the sparse part."""


@dataclass(frozen=True)
class Decomposition:
    """values: the weight [O, I] on its codebooks, sparse weights unchanged. sparse: number of sparse weights."""

    values: Tensor
    sparse: int


def decompose(weight_OI: Tensor, fisher_OI: Tensor, bits: int, outliers: float, sensitive: float) -> Decomposition:
    """Quantize ``weight_OI`` to 2^bits values per row, computed in float32 (float64 stays float64).

    outliers: share of the weights kept because of their size; sensitive: share kept, of the rest, because of their
    Fisher information. Both are rounded to whole weights. Raises ValueError for weights or Fisher information that are
    not finite.
    """
    weight_OI = check_tensor(weight_OI)
    sparse_OI = sparse_mask(weight_OI, fisher_OI, outliers, sensitive)
    weights_OI = fisher_OI.masked_fill(sparse_OI, 0)
    # A row without gradients carries no information, so its dense weights are weighted equally.
    unknown_O = weights_OI.amax(1, keepdim=True) == 0
    weights_OI = torch.where(unknown_O, (~sparse_OI).to(weights_OI.dtype), weights_OI)
    dense_OI = weight_OI.masked_fill(sparse_OI, 0)
    centroids_OK = k_means(dense_OI, weights_OI, 2**bits).to(weight_OI.dtype)
    values_OI = centroids_OK.gather(1, nearest(dense_OI, centroids_OK))
    return Decomposition(torch.where(sparse_OI, weight_OI, values_OI), int(sparse_OI.sum()))


def sparse_mask(weight_OI: Tensor, fisher_OI: Tensor, outliers: float, sensitive: float) -> Tensor:
    """Bool [O, I]: which weights stay in full precision."""
    flat = torch.zeros(weight_OI.numel(), dtype=torch.bool, device=weight_OI.device)
    flat[weight_OI.abs().flatten().topk(round(outliers * len(flat))).indices] = True
    rest = fisher_OI.flatten().masked_fill(flat, 0)
    most = rest.topk(round(sensitive * len(flat))).indices
    flat[most[rest[most] > 0]] = True
    return flat.reshape(weight_OI.shape)


def stored_bits(shape: tuple[int, int], bits: int, sparse: int) -> int:
    """Stored bits of codes, codebooks and sparse part.

    The sparse part is in CSR format: 16 bits per value, 16 per column index (32 for more than 65536 columns), 32 per
    row offset. A sparse weight has an unused code as well.
    """
    rows, columns = shape
    dense = rows * columns * bits + rows * (1 << bits) * VALUE_BITS
    index_bits = 16 if columns <= 2**16 else 32
    return dense + (sparse * (VALUE_BITS + index_bits) + (rows + 1) * POINTER_BITS if sparse else 0)

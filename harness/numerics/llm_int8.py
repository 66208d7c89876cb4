"""LLM.int8(): a vector-wise 8-bit product, plus a full-precision product of the few outlier input columns.

    y = (a / 127) (w / 127) Σ_j∉O c_j d_j  +  Σ_j∈O x_j ŵ_j      O: columns in which some |x| ≥ threshold

with the codes c of a token scaled by a, its largest absolute input below the threshold, and the codes d of an output
channel scaled by w, its largest absolute weight. ŵ are the dequantized weights.

Source: Dettmers et al. 2022 (arXiv 2208.07339), section 3. Where paper and library differ, this follows the library
that users run, bitsandbytes: the weights of outlier columns come from their codes (the paper keeps them in 16 bits),
and a is taken over all inputs of a token below the threshold, including those in outlier columns. The library rounds
inputs and weights to float16 before it quantizes them; here they are quantized in their own dtype.

Legend: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.numerics.formats import check_tensor

LARGEST = 127
EXACT_INPUTS = 2**24 // LARGEST**2
"""Number of products of two codes that float32 sums exactly, in any order."""


def weight_codes(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [O, I] (int8) of a weight and the step of each output channel [O] (float32).

    Raises ValueError for weights that are empty or not finite.
    """
    codes_OI, steps_O = _codes(check_tensor(weight_OI).float())
    return codes_OI.to(torch.int8), steps_O


def mixed_product(x_NI: Tensor, codes_OI: Tensor, steps_O: Tensor, threshold: float) -> Tensor:
    """The product [N, O] in float32. Outlier columns are determined from the inputs of this call."""
    x_NI = x_NI.float()
    large_NI = x_NI.abs() >= threshold
    outlier_I = large_NI.any(dim=0)
    inputs_NI, steps_N = _codes(x_NI.masked_fill(large_NI, 0))
    whole_NO = exact_product(inputs_NI.masked_fill_(outlier_I, 0), codes_OI)
    result_NO = whole_NO * steps_N[:, None] * steps_O
    columns = outlier_I.nonzero()[:, 0]
    return result_NO + x_NI[:, columns] @ (codes_OI[:, columns].float() * steps_O[:, None]).T


def exact_product(left_NI: Tensor, right_OI: Tensor) -> Tensor:
    """The product [N, O] of two matrices of codes in −127 … 127: every sum is exact and rounded once to float32.

    Computed in float32 in pieces small enough to be exact, whose sums are added in float64. (TF32 represents the
    codes exactly, too.)
    """
    pieces = zip(*(torch.split(side, EXACT_INPUTS, dim=1) for side in (left_NI, right_OI)), strict=True)
    products = [left.float() @ right.float().T for left, right in pieces]
    return products[0] if len(products) == 1 else torch.stack(products).sum(dim=0, dtype=torch.float64).float()


def _codes(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, I], still as floats, and steps [N]; a row too small to have a scale becomes 0. NaN stays NaN."""
    largest_N = x_NI.abs().amax(dim=1)
    factor_N = LARGEST / largest_N
    factor_N = torch.where(factor_N.isinf(), 0, factor_N)
    return (x_NI * factor_N[:, None]).round_(), largest_N / LARGEST

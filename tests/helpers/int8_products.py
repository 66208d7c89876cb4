"""Whether this processor multiplies int8 matrices exactly, as layers of int8 codes and int8 inputs need it.

Without VNNI (AMD before Zen 4, Intel before Cascade Lake) oneDNN adds pairs of products in 16 bits and saturates: the
layers of torchao and optimum-quanto that round their inputs, too, then compute other numbers than their codes say.
"""

from __future__ import annotations

import pytest
import torch


def saturates() -> bool:
    """Whether the largest sums of products of codes come out wrong."""
    codes = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(codes, codes.T) != 64 * 127 * 127).any())


REASON = "int8 products saturate on this processor, so layers with int8 inputs are far from their codes"
may_saturate = pytest.mark.xfail(saturates(), reason=REASON, strict=False)
"""Runs a test of such layers everywhere, and tells its failure where products saturate."""

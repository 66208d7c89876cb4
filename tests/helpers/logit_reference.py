"""Statistics of rows of logits by other people's code, to compare the harness with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
import torch
from torch import Tensor


def expected(reference: Tensor, variant: Tensor, targets: Tensor) -> pd.DataFrame:
    """The statistics of rows of float64 logits, by other people's code. Top-1 by numpy, KL by scipy."""
    nll = [torch.nn.functional.cross_entropy(z, targets, reduction="none").numpy() for z in (reference, variant)]
    p, q = (scipy.special.softmax(z.numpy(), axis=-1) for z in (reference, variant))
    difference = np.abs(reference.numpy() - variant.numpy())
    return pd.DataFrame(
        {
            "reference_nll": nll[0],
            "variant_nll": nll[1],
            "reference_top1": reference.numpy().argmax(-1),
            "variant_top1": variant.numpy().argmax(-1),
            "reference_top1_p": p.max(-1),
            "variant_top1_p": q.max(-1),
            "reference_entropy": scipy.stats.entropy(p, axis=-1),
            "variant_entropy": scipy.stats.entropy(q, axis=-1),
            "kl": scipy.stats.entropy(p, q, axis=-1),
            "reverse_kl": scipy.stats.entropy(q, p, axis=-1),
            "max_abs_diff": difference.max(-1),
            "mean_abs_diff": difference.mean(-1),
            "total_variation": np.abs(p - q).sum(-1) / 2,
        }
    )


def agree(found: pd.DataFrame, wanted: pd.DataFrame, atol: float = 2e-6) -> None:
    assert list(found.columns) == list(wanted.columns)
    for column in wanted:
        np.testing.assert_allclose(found[column], wanted[column], rtol=2e-4, atol=atol, err_msg=str(column))

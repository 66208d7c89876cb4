"""Checks that the reference predicts the texts of a suite: a variant of a model that knows nothing loses nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.statistics import mean, mean_interval
from harness.statistics.unigram import held_out_unigram_nll

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("document", "target", "reference_nll")
"""Of the table ``tokens``."""
CONFIDENCE = 0.95


def explain_weakness(tokens: pd.DataFrame, vocabulary: int) -> str:
    """Why the reference counts as predicting nothing; empty if it predicts the texts.

    It does if its NLL is below that of a uniform distribution (ln V) and below that of a unigram model of the other
    documents (``held_out_unigram_nll``), each by the upper end of the 95 % interval of the mean paired difference per
    token, with documents as clusters. NaN and infinity are left to the measures, whose rules fail on them.
    """
    nll = tokens["reference_nll"].to_numpy(dtype=np.float64)
    if not len(nll) or not np.isfinite(nll).all():
        return ""
    documents, ids = tokens["document"].to_numpy(), tokens["target"].to_numpy()
    simple = {
        f"a uniform guess among {vocabulary:,} tokens": np.full(len(nll), math.log(vocabulary)),
        "a unigram model of the other documents": held_out_unigram_nll(ids, documents, vocabulary),
    }
    reasons = []
    for name, other in simple.items():
        interval = mean_interval(nll - other, documents, CONFIDENCE)
        if interval is None or interval.high >= 0:
            ends = "unknown" if interval is None else f"[{interval.low:.4g}, {interval.high:.4g}]"
            reasons.append(f"{mean(other):.4g} for {name} (95 % interval of the difference {ends})")
    if not reasons:
        return ""
    return (
        f"the reference predicts these texts no better than chance: its NLL is {mean(nll):.4g} nats per token, against "
        f"{' and '.join(reasons)}"
    )

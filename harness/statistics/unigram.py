"""The unigram model of a set of documents, held out: how well the frequencies of tokens alone predict a document."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics.interval import Floats


def held_out_unigram_nll(tokens: ArrayLike, documents: ArrayLike, vocabulary: int) -> Floats:
    """Negative log-likelihood in nats of each token under the unigram model of all *other* documents.

    −ln p with p = (c + T/V) / (N + T) for a token that occurs c times in the other documents, which have N tokens, T of
    them distinct, and V the size of the vocabulary: the estimate of Witten and Bell (1991, method C) over a uniform
    distribution. Leaving the own document out keeps short texts from predicting themselves. With a single document
    p = 1/V. Raises ValueError for lengths that differ and tokens outside 0 … V − 1.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    labels = np.unique(np.asarray(documents), return_inverse=True)[1]
    if ids.shape != labels.shape:
        raise ValueError(f"found {ids.shape} tokens and {labels.shape} documents, expected as many")
    if len(ids) == 0:
        return np.zeros(0)
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(f"found tokens {ids.min()} to {ids.max()}, expected 0 to {vocabulary - 1}")
    counts = np.bincount(ids, minlength=vocabulary)
    nll = np.full(len(ids), np.log(vocabulary))
    order = np.argsort(labels, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        own, places, here = np.unique(ids[rows], return_inverse=True, return_counts=True)
        others = len(ids) - len(rows)
        if others:
            distinct = int(np.count_nonzero(counts)) - int(np.count_nonzero(counts[own] == here))
            left = (counts[own] - here)[places]
            nll[rows] = np.log(others + distinct) - np.log(left + distinct / vocabulary)
    return nll

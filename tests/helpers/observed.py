"""Small hand-made tables, made from logits so that every column has an independent definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax


@dataclass(frozen=True)
class Observed:
    """Logits of both sides (tokens, vocabulary), targets, documents, and the table made from them."""

    reference: np.ndarray
    variant: np.ndarray
    target: np.ndarray
    document: np.ndarray
    table: pd.DataFrame


def _token_table(reference: np.ndarray, variant: np.ndarray, target: np.ndarray, document: np.ndarray) -> pd.DataFrame:
    p, q = log_softmax(reference, axis=1), log_softmax(variant, axis=1)
    rows = np.arange(len(target))
    columns: dict[str, np.ndarray] = {
        "document": document.astype(np.int32),
        "position": rows.astype(np.int32),
        "target": target.astype(np.int32),
        "bytes": (1 + target % 4).astype(np.float32),
    }
    for side, log_p in (("reference", p), ("variant", q)):
        columns[f"{side}_nll"] = -log_p[rows, target]
        columns[f"{side}_top1"] = log_p.argmax(axis=1).astype(np.int32)
        columns[f"{side}_top1_p"] = np.exp(log_p.max(axis=1))
        columns[f"{side}_entropy"] = -(np.exp(log_p) * log_p).sum(axis=1)
    columns["kl"] = (np.exp(p) * (p - q)).sum(axis=1)
    columns["reverse_kl"] = (np.exp(q) * (q - p)).sum(axis=1)
    columns["max_abs_diff"] = np.abs(reference - variant).max(axis=1)
    columns["mean_abs_diff"] = np.abs(reference - variant).mean(axis=1)
    columns["total_variation"] = np.abs(np.exp(p) - np.exp(q)).sum(axis=1) / 2
    return pd.DataFrame(columns)


def observe(documents: int = 24, tokens: int = 30, noise: float = 0.3, seed: int = 0) -> Observed:
    """An observation of documents of uneven length; noise 0 makes both sides equal."""
    generator = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), generator.integers(max(tokens // 2, 1), tokens + 1, documents))
    reference = 2 * generator.normal(size=(len(document), 11))
    own = np.exp(0.3 * generator.normal(size=documents))[document]
    variant = reference + noise * own[:, None] * generator.normal(size=reference.shape)
    target = generator.integers(11, size=len(document))
    return Observed(reference, variant, target, document, _token_table(reference, variant, target, document))


def observe_layers(
    documents: int = 24, values: int = 64, noise: float = 0.1, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A layers table of four modules, and the outputs (documents, values) it was made from."""
    generator = np.random.default_rng(seed)
    rows, outputs = [], {}
    kinds = {"layers.0.norm": "norm", "layers.0.q": "linear", "layers.0": "block", "lm_head": "head"}
    for depth, (module, kind) in enumerate(kinds.items()):
        reference = generator.normal(size=(documents, values)) * generator.uniform(0.5, 2, (documents, 1))
        amount = 0.0 if kind == "norm" else noise * (1 + depth)
        variant = reference + amount * generator.normal(size=reference.shape)
        outputs[module] = (reference, variant)
        for document, (y, z) in enumerate(zip(reference, variant, strict=True)):
            rows.append(
                {
                    "document": np.int32(document),
                    "module": module,
                    "kind": kind,
                    "depth": np.int32(depth),
                    "sum_squared_error": ((y - z) ** 2).sum(),
                    "sum_squared_reference": (y**2).sum(),
                    "sum_squared_variant": (z**2).sum(),
                    "dot": (y * z).sum(),
                    "max_abs_diff": np.abs(y - z).max(),
                    "n": values,
                }
            )
    return pd.DataFrame(rows), outputs

"""Documents, kinds of document and tokens with the largest divergence, and distributions over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.report.drawing.charts import Bins
from harness.report.drawing.scales import Scale
from harness.report.summaries.suite_tables import SuiteTables

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
COLUMNS = (
    "document", "position", "target", "bytes", "reference_nll", "variant_nll", "reference_top1",
    "variant_top1", "reference_top1_p", "variant_top1_p", "kl", "max_abs_diff", )  # fmt: skip


@dataclass(frozen=True)
class TokenGroup:
    """A group of tokens: those of one document or one kind of document. kl in nats/token."""

    name: str
    kind: str
    documents: int
    tokens: int
    kl: float
    agreement: float
    reference_nll: float
    variant_nll: float


@dataclass(frozen=True)
class Token:
    """One scored token."""

    document: str
    kind: str
    position: int
    target: int
    kl: float
    reference_p: float
    variant_p: float
    reference_top1: int
    variant_top1: int


@dataclass(frozen=True)
class SuiteTokens:
    """All finite tokens of a suite with the names of their documents; dropped counts those that are not
    finite.
    """

    frame: pd.DataFrame
    dropped: int

    @property
    def total(self) -> int:
        """Number of finite tokens."""
        return len(self.frame)


def read_tokens(suite: SuiteTables) -> SuiteTokens | None:
    """The token table joined with the names and kinds of documents, or None where there is none."""
    frame = suite.read("tokens", COLUMNS)
    if frame is None:
        return None
    documents = suite.read("documents", ("document", "id", "kind"))
    if documents is None:
        named = frame.assign(id=frame["document"].astype(str), kind="")
    else:
        named = frame.merge(documents, on="document", how="left", validate="many_to_one")
    numbers = named[["kl", "reference_nll", "variant_nll", "reference_top1_p", "variant_top1_p", "max_abs_diff"]]
    finite = np.isfinite(numbers.to_numpy(dtype=np.float64)).all(axis=1)
    kept = named[finite].reset_index(drop=True)
    return SuiteTokens(kept, int((~finite).sum())) if len(kept) else None


def group_by_kind(found: SuiteTokens, most: int) -> list[TokenGroup]:
    """One group per kind of document, a limited number, the largest mean KL first."""
    return _groups(found.frame, "kind", most)


def count_kinds(found: SuiteTokens) -> int:
    """The number of kinds of document."""
    return int(found.frame["kind"].nunique())


def group_by_document(found: SuiteTokens, most: int) -> list[TokenGroup]:
    """The documents with the largest mean KL, a limited number."""
    return _groups(found.frame, "document", most)


def _groups(frame: pd.DataFrame, key: str, most: int) -> list[TokenGroup]:
    """Means over the tokens of each group, sorted by mean KL."""
    same = frame["reference_top1"] == frame["variant_top1"]
    grouped = frame.assign(same=same).groupby(key, sort=True, observed=True)
    means = grouped[["kl", "same", "reference_nll", "variant_nll"]].mean()
    means["documents"], means["tokens"] = grouped["document"].nunique(), grouped.size()
    means["id"], means["kind_name"] = grouped["id"].first(), grouped["kind"].first()
    means["name"] = means["id"] if key == "document" else means.index
    means = means.sort_values("kl", ascending=False, kind="stable").head(most)
    return [
        TokenGroup(
            name=str(row["name"]),
            kind=str(row["kind_name"]),
            documents=int(row["documents"]),
            tokens=int(row["tokens"]),
            kl=float(row["kl"]),
            agreement=float(row["same"]),
            reference_nll=float(row["reference_nll"]),
            variant_nll=float(row["variant_nll"]),
        )
        for row in means.to_dict("records")
    ]


def rank_tokens(found: SuiteTokens, most: int) -> list[Token]:
    """The tokens with the largest KL; equal ones in the order of documents and positions."""
    order = found.frame.sort_values(["kl", "document", "position"], ascending=[False, True, True], kind="stable").head(
        most
    )
    return [
        Token(
            document=str(row["id"]),
            kind=str(row["kind"]),
            position=int(row["position"]),
            target=int(row["target"]),
            kl=float(row["kl"]),
            reference_p=float(np.exp(-row["reference_nll"])),
            variant_p=float(np.exp(-row["variant_nll"])),
            reference_top1=int(row["reference_top1"]),
            variant_top1=int(row["variant_top1"]),
        )
        for row in order.to_dict("records")
    ]


def get_column(found: SuiteTokens, name: str) -> Floats:
    """One column of all finite tokens."""
    return found.frame[name].to_numpy(dtype=np.float64)


def compute_delta_p(found: SuiteTokens) -> Floats:
    """p_variant(target) − p_reference(target) of every token."""
    return np.exp(-get_column(found, "variant_nll")) - np.exp(-get_column(found, "reference_nll"))


def count_by_decade(values: Floats, floor: float, per_decade: int = 4) -> tuple[Bins, int] | None:
    """Counts by powers of ten of the values above ``floor``, and how many lie at or below it."""
    above = values[values > floor]
    if not len(above):
        return None
    first = np.floor(np.log10(above.min()) * per_decade)
    last = np.floor(np.log10(above.max()) * per_decade) + 1
    edges = 10 ** (np.arange(first, last + 1) / per_decade)
    counts, _ = np.histogram(np.log10(above), bins=np.arange(first, last + 1) / per_decade)
    return _bins(edges, counts, Scale(float(edges[0]), float(edges[-1]), log=True)), int(len(values) - len(above))


def count_evenly(values: Floats, count: int = 41) -> Bins:
    """Counts in bins of one width, symmetric about zero and wide enough for 99.8 % of the values.

    The outermost bins also hold what lies beyond them.
    """
    reach = float(np.quantile(np.abs(values), 0.998)) or float(np.abs(values).max()) or 1.0
    edges = np.linspace(-reach, reach, count + 1)
    counts, _ = np.histogram(np.clip(values, -reach, reach), bins=edges)
    return _bins(edges, counts, Scale(-reach, reach))


def _bins(edges: Floats, counts: NDArray[np.intp], scale: Scale) -> Bins:
    return Bins(tuple(float(edge) for edge in edges), tuple(int(count) for count in counts), scale)


def compute_quantiles(values: Floats, at: Sequence[float]) -> list[float]:
    """Quantiles of the values."""
    return [float(value) for value in np.quantile(values, at)]


def compute_reliability(tokens: SuiteTokens, side: str, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, count) of equal-width bins of one side's top-1 probability."""
    confidence = get_column(tokens, f"{side}_top1_p")
    right = (tokens.frame[f"{side}_top1"] == tokens.frame["target"]).to_numpy()
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums, hits = (np.bincount(index, weights=w, minlength=bins) for w in (confidence, right.astype(float)))
    return [
        (float(s / n), float(h / n), int(n)) if n else (0.0, 0.0, 0) for s, h, n in zip(sums, hits, counts, strict=True)
    ]


def compute_agreement(found: SuiteTokens) -> list[tuple[str, int, float]]:
    """Share of tokens where both sides predict the same token, by the reference's confidence: (range, tokens,
    share)."""
    confidence = get_column(found, "reference_top1_p")
    same = (found.frame["reference_top1"] == found.frame["variant_top1"]).to_numpy()
    rows = []
    for low, high in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.95), (0.95, 1.0)):
        inside = (confidence >= low) & ((confidence < high) | (high == 1.0))
        if inside.any():
            rows.append((f"{low * 100:.0f}–{high * 100:.0f} %", int(inside.sum()), float(same[inside].mean())))
    return rows

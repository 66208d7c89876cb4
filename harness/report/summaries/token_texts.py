"""Tokens as text: with blanks made visible, and around the tokens that lost most probability."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.report.display import clean, number, percent
from harness.report.summaries.suite_tables import SuiteTables
from harness.report.summaries.tokens import SuiteTokens

if TYPE_CHECKING:
    import pandas as pd

Texts = Mapping[int, str]
VISIBLE = str.maketrans({" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"})
LOSSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Lower ends of the ten shades: by how much the probability of a token fell."""
LONGEST = 40
"""Characters of a token that are shown."""


@dataclass(frozen=True)
class Piece:
    """One token in its text. shade: index into LOSSES, None below the first. worst: it lost most in its passage."""

    text: str
    shade: int | None
    hint: str
    worst: bool


@dataclass(frozen=True)
class Passage:
    """Text around the token of a document that lost most probability (from ``reference`` to ``variant``); before and
    after count the tokens of the document that are left out.
    """

    document: str
    kind: str
    reference: float
    variant: float
    pieces: tuple[Piece, ...]
    before: int
    after: int


def read_token_texts(suite: SuiteTables) -> Texts:
    """The text of each id; empty where the run wrote none."""
    frame = suite.read("token_texts", ("id", "text"))
    return {} if frame is None else dict(zip(frame["id"].tolist(), frame["text"].tolist(), strict=True))


def show_token(texts: Texts, token: int) -> str:
    """The text of a token with its blanks made visible, or "id 5" where it has none."""
    text = texts.get(token, "")
    return clean(text.translate(VISIBLE), LONGEST) if text else f"id {token}"


def find_passages(found: SuiteTokens, texts: Texts, most: int, around: int) -> list[Passage]:
    """The documents with the tokens that lost most probability, one passage each, ``around`` tokens on either side."""
    if not texts:
        return []
    numbers = found.frame[["reference_nll", "variant_nll"]].to_numpy(dtype=np.float64)
    reference, variant = np.exp(-numbers[:, 0]), np.exp(-numbers[:, 1])
    frame = found.frame.assign(p_reference=reference, p_variant=variant, lost=reference - variant)
    order = ["lost", "document", "position"]
    worst = frame.sort_values(order, ascending=[False, True, True], kind="stable").drop_duplicates("document").head(most)
    return [_read_passage(frame, row, texts, around) for row in worst.to_dict("records") if row["lost"] > 0]


def _read_passage(frame: pd.DataFrame, worst: Mapping[Any, Any], texts: Texts, around: int) -> Passage:
    own = frame[frame["document"] == worst["document"]].sort_values("position")
    at = int(own["position"].searchsorted(worst["position"]))
    first, last = max(0, at - around), min(len(own), at + around + 1)
    rows = own.iloc[first:last].to_dict("records")
    pieces = tuple(_make_piece(row, texts, row["position"] == worst["position"]) for row in rows)
    ends = float(worst["p_reference"]), float(worst["p_variant"])
    return Passage(str(worst["id"]), str(worst["kind"]), *ends, pieces, first, len(own) - last)


def _make_piece(row: Mapping[Any, Any], texts: Texts, worst: bool) -> Piece:
    shade = bisect_right(LOSSES, float(row["lost"])) - 1
    ours, theirs = (show_token(texts, int(row[f"{side}_top1"])) for side in ("reference", "variant"))
    top1 = f"most likely: {ours}" if ours == theirs else f"most likely: {ours}, variant: {theirs}"
    hint = (
        f"token {int(row['position'])}, id {int(row['target'])}: p {percent(float(row['p_reference']))} → "
        f"{percent(float(row['p_variant']))}, KL {number(float(row['kl']))}; {top1}"
    )
    return Piece(show_token(texts, int(row["target"])), shade if shade >= 0 else None, hint, worst)

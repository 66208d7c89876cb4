"""Tokens as text, and passages around the tokens that lost most probability."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.report.display import clean, format_signed, number, percent
from harness.report.summaries.suite_tables import SuiteTables
from harness.report.summaries.tokens import SuiteTokens

if TYPE_CHECKING:
    import pandas as pd

VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"})
LOSSES = (0.1, 0.3, 1.0, 2.0, 4.0)
"""Lower ends of the levels of loss, in nats: ln p_reference − ln p_variant of the token that the text has there."""
LONGEST = 40
"""Characters of a token that are shown."""
MOST_PARTS = 8
"""Tokens that may share one character."""
WORST = 5
"""Tokens of a passage whose numbers are listed."""


@dataclass(frozen=True)
class Texts:
    """The text of each token id; parts: the bytes of those that are no whole character."""

    by_id: Mapping[int, str]
    parts: Mapping[int, bytes]

    @property
    def unknown(self) -> int:
        """How many ids have no text, because the tokenizer could not decode them."""
        return sum(not text for text in self.by_id.values())


NO_TEXTS = Texts({}, {})


@dataclass(frozen=True)
class TokenLoss:
    """One token of a passage. position: its place in the document, the first is 0. lost: in nats, negative for a gain;
    kl in nats."""

    position: int
    text: str
    reference_p: float
    variant_p: float
    lost: float
    kl: float
    reference_top1: str
    variant_top1: str


@dataclass(frozen=True)
class Piece:
    """What is shown as one: a token, or those that share a character. level: 0 below the first of LOSSES."""

    text: str
    level: int
    hint: str
    worst: bool


@dataclass(frozen=True)
class Passage:
    """Text around the token of a document that lost most probability.

    before, after: how many scored tokens of the document are left out. ranked: the tokens of the passage that lost
    most, the worst one first.
    """

    document: str
    number: int
    kind: str
    pieces: tuple[Piece, ...]
    ranked: tuple[TokenLoss, ...]
    before: int
    after: int

    @property
    def worst(self) -> TokenLoss:
        """The token that lost most."""
        return self.ranked[0]


def read_token_texts(suite: SuiteTables) -> Texts:
    """The text of each id; empty where the run wrote none."""
    frame = suite.read("token_texts", ("id", "text", "bytes"))
    if frame is None:
        return NO_TEXTS
    ids = frame["id"].tolist()
    parts = {key: _read_hex(str(part)) for key, part in zip(ids, frame["bytes"], strict=True) if part}
    return Texts(dict(zip(ids, map(str, frame["text"]), strict=True)), parts)


def _read_hex(part: str) -> bytes:
    try:
        return bytes.fromhex(part)
    except ValueError:  # a table that somebody edited
        return b""


def show_token(texts: Texts, token: int) -> str:
    """The text of a token alone, with its blanks made visible, or "id 5" where it has none."""
    text = texts.by_id.get(token, "")
    return _show(text).replace(" ", "␣") if text else f"id {token}"


def _show(text: str) -> str:
    return clean(text.translate(VISIBLE), LONGEST)


def find_passages(found: SuiteTokens, texts: Texts, most: int, around: int) -> list[Passage]:
    """The documents with the tokens that lost most probability, one passage each, ``around`` tokens on either side.

    The same words in several documents are one passage.
    """
    if not texts.by_id:
        return []
    lost = found.frame["variant_nll"].to_numpy(dtype=np.float64) - found.frame["reference_nll"]
    frame = found.frame.assign(lost=lost)
    worst = frame.loc[frame.groupby("document", sort=True)["lost"].idxmax()]
    worst = worst[worst["lost"] > 0].sort_values("lost", ascending=False, kind="stable")
    passages: dict[str, Passage] = {}
    # A corpus may consist of copies; looking through all of them would take longer than their passages are worth.
    for row in worst.head(4 * most).to_dict("records"):
        passage = _read_passage(frame, row, texts, around)
        passages.setdefault("".join(piece.text for piece in passage.pieces), passage)
    return list(passages.values())[:most]


def _read_passage(frame: pd.DataFrame, worst: Mapping[Any, Any], texts: Texts, around: int) -> Passage:
    own = frame[frame["document"] == worst["document"]].sort_values("position", kind="stable")
    at = int(own["position"].searchsorted(worst["position"]))
    first, last = max(0, at - around), min(len(own), at + around + 1)
    rows = own.iloc[first:last].to_dict("records")
    pieces = tuple(_make_piece(part, texts, worst["position"]) for part in _join_parts(rows, texts))
    ranked = sorted(rows, key=lambda row: (-row["lost"], row["position"]))[:WORST]
    return Passage(
        document=str(worst["id"]),
        number=int(worst["document"]),
        kind=str(worst["kind"]),
        pieces=pieces,
        ranked=tuple(_describe(row, texts) for row in ranked if row["lost"] > 0),
        before=first,
        after=len(own) - last,
    )


def _join_parts(rows: Sequence[Mapping[Any, Any]], texts: Texts) -> Iterator[tuple[str, list[Mapping[Any, Any]]]]:
    """The text of each token with its row, or of several that make whole characters only together."""
    at = 0
    while at < len(rows):
        length, text = _complete([int(row["target"]) for row in rows[at : at + MOST_PARTS]], texts)
        yield text, list(rows[at : at + length])
        at += length


def _complete(ids: Sequence[int], texts: Texts) -> tuple[int, str]:
    """How many of the tokens make whole characters, and which; the first alone if no number of them does."""
    content = b""
    for length, token in enumerate(ids, start=1):
        if token not in texts.parts:
            break
        content += texts.parts[token]
        try:
            return length, _show(content.decode())
        except UnicodeDecodeError:
            continue
    text = texts.by_id.get(ids[0], "")
    return 1, _show(text) if text else f"[id {ids[0]}]"


def _make_piece(part: tuple[str, list[Mapping[Any, Any]]], texts: Texts, worst: object) -> Piece:
    text, rows = part
    level = bisect_right(LOSSES, max(float(row["lost"]) for row in rows))
    hints = [_hint(_describe(row, texts)) for row in rows]
    return Piece(text, level, "; ".join(hints), any(row["position"] == worst for row in rows))


def _describe(row: Mapping[Any, Any], texts: Texts) -> TokenLoss:
    return TokenLoss(
        position=int(row["position"]),
        text=show_token(texts, int(row["target"])),
        reference_p=float(np.exp(-row["reference_nll"])),
        variant_p=float(np.exp(-row["variant_nll"])),
        lost=float(row["lost"]),
        kl=float(row["kl"]),
        reference_top1=show_token(texts, int(row["reference_top1"])),
        variant_top1=show_token(texts, int(row["variant_top1"])),
    )


def _hint(token: TokenLoss) -> str:
    change = f"{percent(token.reference_p)} → {percent(token.variant_p)} ({format_signed(-token.lost)} nats)"
    return f"token {number(token.position)}: {change}"

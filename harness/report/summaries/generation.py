"""Greedy texts of both sides after the same prompts, and the positions of their first differences."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.report import display
from harness.report.drawing.charts import Bins
from harness.report.drawing.scales import Scale
from harness.report.summaries.suite_tables import SuiteTables

COLUMNS = (
    "id", "kind", "prompt", "reference_text", "variant_text", "reference_ended", "variant_ended", "same_tokens",
    "diverged", "first", "first_character", "similarity",
)  # fmt: skip
BEFORE, AFTER, PROMPT = 90, 260, 160
"""Number of characters shown before and after the first difference, and of a prompt."""
MOST_BINS = 32
_WORD = re.compile(r"\s*\S*")


@dataclass(frozen=True)
class Excerpt:
    """The text of one side around the first difference: the word that contains it, the rest, and how it ends."""

    word: str
    rest: str
    end: str


@dataclass(frozen=True)
class Pairing:
    """Both texts after one prompt. common: the end of their common prefix. place: position of the first difference, in
    words."""

    id: str
    kind: str
    prompt: str
    common: str
    reference: Excerpt
    variant: Excerpt
    place: str
    similarity: float


@dataclass(frozen=True)
class Continuations:
    """All prompts of a suite: their number, the number of identical continuations, and the pairs that differ most."""

    total: int
    equal: int
    worst: tuple[Pairing, ...]
    positions: Bins | None
    median: float | None
    unit: str


def read_texts(suite: SuiteTables, most: int) -> Continuations | None:
    """The table ``generations``, the pairs that differ most first; None if there is none."""
    frame = suite.read("generations", COLUMNS)
    if frame is None:
        return None
    differing = frame[frame["diverged"]]
    tokens = bool(frame["same_tokens"].all())
    places = differing["first" if tokens else "first_character"].to_numpy(dtype=np.int64)
    ordered = differing.sort_values(["similarity", "first_character"], kind="stable").head(most)
    return Continuations(
        total=len(frame),
        equal=len(frame) - len(differing),
        worst=tuple(_pairing(row, tokens) for row in ordered.to_dict("records")),
        positions=_bins(places) if len(places) else None,
        median=float(np.median(places)) if len(places) else None,
        unit="token" if tokens else "character",
    )


def _bins(places: np.ndarray) -> Bins:
    """Counts by position, one bin per position if there are few."""
    width = -(-(int(places.max()) + 1) // MOST_BINS)
    edges = np.arange(0, int(places.max()) + width + 1, width)
    counts, _ = np.histogram(places, bins=edges)
    scale = Scale(0.0, float(edges[-1]))
    return Bins(tuple(map(float, edges)), tuple(map(int, counts)), scale, "texts")


def _pairing(row: Mapping[Hashable, Any], tokens: bool) -> Pairing:
    at = int(row["first_character"])
    reference = str(row["reference_text"])
    count, unit = (int(row["first"]), "token") if tokens else (at, "character")
    place = f"after {display.number(count)} {unit}{'s' * (count != 1)}"
    return Pairing(
        id=str(row["id"]),
        kind=str(row["kind"]),
        prompt=display.show_end(str(row["prompt"]), PROMPT),
        common=display.show_end(reference[:at], BEFORE),
        reference=_split_side(reference[at:], bool(row["reference_ended"])),
        variant=_split_side(str(row["variant_text"])[at:], bool(row["variant_ended"])),
        place=place,
        similarity=float(row["similarity"]),
    )


def _split_side(text: str, ended: bool) -> Excerpt:
    match = _WORD.match(text)
    word = match[0] if match else ""
    rest = text[len(word) :]
    shown = display.show_breaks(rest[:AFTER]) + (" …" if len(rest) > AFTER else "")
    return Excerpt(display.show_breaks(word[:AFTER]), shown, "ends here" if ended else "")


def count_identical(found: Continuations) -> str:
    """How many prompts give identical texts, of how many: "5 of 20"."""
    return f"{display.number(found.equal)} of {display.number(found.total)}"

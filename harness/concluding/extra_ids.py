"""What a shared pass found on ids that only one side has: said in a note, and a reason against token metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records import Note

if TYPE_CHECKING:
    import pandas as pd

    from harness.tables.access import Tables

UNUSED_AT_A_TOKEN, UNUSED_IN_A_DOCUMENT = 0.01, 0.001
"""Largest probability of all extra ids together for which they count as unused: at any token, and on average over the
tokens of any document.

Declared, not measured. A mass m on extra ids makes every token -ln(1 - m) nats less likely than over the common ids: on
average at most 0.001 then, a fifth of the smallest change of perplexity that the shipped gates limit.
"""
TABLES = ("tokens",)
"""Tables of statistics over the common ids alone."""


@dataclass(frozen=True)
class ExtraMass:
    """Probability that one side gives to its extra ids: the largest at any token (in ``document``) and the largest mean
    over the tokens of a document.
    """

    largest: float
    mean: float
    side: str
    document: str

    @property
    def unused(self) -> bool:
        """Whether leaving out the extra ids changes nothing of weight. NaN is no bound."""
        return self.largest <= UNUSED_AT_A_TOKEN and self.mean <= UNUSED_IN_A_DOCUMENT

    def __str__(self) -> str:
        return (
            f"the {self.side} gives them a probability of up to {self.largest:.2g} at a token and {self.mean:.2g} on "
            f"average in a document, most in {self.document} (unused: at most {UNUSED_AT_A_TOKEN:g} and "
            f"{UNUSED_IN_A_DOCUMENT:g})"
        )


def find_extra_mass(tables: Tables, suite: str) -> ExtraMass | None:
    """The side that gives most to extra ids, with its document; None if all ids were compared."""
    found = tables.read(suite, "extra_ids")
    if found is None or found.empty:
        return None
    documents = tables.read(suite, "documents", ("document", "id"))
    names = {} if documents is None else dict(zip(documents["document"], documents["id"], strict=True))
    sides = [_of_side(found, side, names) for side in ("reference", "variant")]
    return max(sides, key=lambda each: (not each.unused, math.isnan(each.largest), each.largest))


def _of_side(found: pd.DataFrame, side: str, names: Mapping[int, str]) -> ExtraMass:
    largest, mean = found[f"{side}_largest"], found[f"{side}_mean"]
    order = largest.fillna(math.inf).to_numpy()
    document = int(found["document"].iloc[int(order.argmax())])
    broken = bool(largest.isna().any())
    return ExtraMass(
        math.nan if broken else float(largest.max()),
        math.nan if broken else float(mean.max()),
        side,
        names.get(document, str(document)),
    )


def explain_used(tables: Tables, suite: str, table: str) -> str:
    """Why metrics of a table are not those of the whole distributions; empty if they are."""
    found = find_extra_mass(tables, suite) if table in TABLES else None
    if found is None or found.unused:
        return ""
    return (
        f"ids that exist on one side only are in use: {found}; give both sides the same vocabulary, or remove the rows "
        "from the head. For a variant that is meant to have ids of its own, take suite student and gate student"
    )


def note_extra_mass(tables: Tables, suite: str) -> list[Note]:
    """How much probability the ids carry that were left out."""
    found = find_extra_mass(tables, suite)
    if found is None:
        return []
    what = "are unused" if found.unused else "are in use, so tokens cannot be compared"
    text = f"suite {suite}: ids that exist on one side only {what}: {found}"
    return [Note(topic="vocabulary", text=text, level="info" if found.unused else "warn")]

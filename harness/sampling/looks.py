"""Looks at a suite whose documents are drawn one after the other: which were drawn, and what intervals they allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from harness.planning.specs import GateSpec, SuiteSpec
from harness.records import Sequential
from harness.records.patterns import could_match
from harness.rules import Rule
from harness.statistics import Betting, GroupSequential, Intervals

if TYPE_CHECKING:
    import pandas as pd

DEFAULT: Sequential = "group_sequential"
"""What a gate takes that names nothing.

Both keep false passes below 5 % however the looks end (.github/COVERAGE.md). The bounds of planned looks decide with
far fewer documents, because they use how little documents differ from each other, as every interval of a fixed size
does; betting assumes nothing but the range, and pays for what documents that were never seen could be.
"""


@dataclass(frozen=True)
class Look:
    """Look ``number`` (from 0) of those after ``sizes`` documents.

    tokens: how many are scored of every document that could be drawn, by its index, in the order of drawing.
    """

    sizes: tuple[int, ...]
    number: int
    tokens: Mapping[int, int]
    method: Sequential = DEFAULT

    @property
    def drawn(self) -> frozenset[int]:
        """Indexes of the documents that were drawn so far."""
        return frozenset(list(self.tokens)[: self.sizes[self.number]])

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that are about the documents drawn so far."""
        return table[table["document"].isin(self.drawn)]

    def intervals(self, part: Collection[int] | None = None) -> Intervals | None:
        """Those that are allowed at this look, for all documents or some of them; None where none of these was drawn.

        Of a part, fewer documents are seen at each look, and fewer in all: its error is spent by its own share.
        """
        chosen = self.tokens.keys() if part is None else set(part)
        counts = [0, *accumulate(document in chosen for document in self.tokens)]
        seen = sorted({counts[size] for size in self.sizes[: self.number + 1]} - {0})
        if not seen:
            return None
        if self.method == "group_sequential":
            return GroupSequential.at(seen, counts[-1])
        found = Betting.at(seen, counts[-1])
        largest = max(count for document, count in self.tokens.items() if document in chosen)
        return Betting(found.confidence, found.together, found.look, largest)


def select_waiting_rules(gates: Sequence[GateSpec], suite: SuiteSpec) -> list[GateSpec]:
    """The rules that wait for documents of a suite: blocking ones, and those that say ``on_inconclusive: extend``.

    A rule that compares the number alone (``decide: point``) is never undecided, so nothing waits for it.
    """
    names = [name for measure in suite.measures for name in measure.metrics_by_document()]
    kept = []
    for gate in gates:
        rules = tuple(spec for spec in gate.rules if _waits(spec.rule, names))
        if rules:
            kept.append(gate.model_copy(update={"rules": rules}))
    return kept


def _waits(rule: Rule, names: Sequence[str]) -> bool:
    wants = rule.decide == "interval" and (rule.level == "block" or rule.on_inconclusive == "extend")
    return wants and any(could_match(rule.metric, name) for name in names)

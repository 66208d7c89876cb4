"""Interim looks of sequential sampling: the documents measured so far, and the intervals valid at each look."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.planning.specs import GateSpec, SuiteSpec
from harness.records import Sequential
from harness.records.patterns import could_match
from harness.rules import Rule
from harness.statistics import Betting, GroupSequential, Intervals

if TYPE_CHECKING:
    import pandas as pd

DEFAULT: Sequential = "group_sequential"
"""The default method of intervals at interim looks.

Both methods keep false passes below 5 % whenever sampling stops (.github/COVERAGE.md). Group-sequential bounds decide
with far fewer documents, because they use the small variation between documents, as every interval of a fixed sample
size does; betting assumes only the range of values, and pays for what unseen documents could be.
"""


@dataclass(frozen=True)
class Look:
    """Interim look ``number`` (from 0) of those after ``sizes`` documents.

    tokens: number of scored tokens of every available document, by its index, in sampling order. clusters: the cluster
    of every document that duplicates another.
    """

    sizes: tuple[int, ...]
    number: int
    tokens: Mapping[int, int]
    method: Sequential = DEFAULT
    clusters: Mapping[int, int] = field(default_factory=dict)

    @property
    def drawn(self) -> frozenset[int]:
        """Indexes of the documents measured so far."""
        return frozenset(list(self.tokens)[: self.sizes[self.number]])

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that belong to the documents measured so far."""
        return table[table["document"].isin(self.drawn)]

    def intervals(self, part: Collection[int] | None = None) -> Intervals | None:
        """The intervals valid at this look, for all documents or some of them; None if none of these was measured yet.

        A slice has fewer documents at each look, and fewer in total: its error is spent by its own share. Duplicates
        carry no information, so shares are shares of clusters.
        """
        chosen = self.tokens.keys() if part is None else set(part)
        sizes: dict[int, int] = {}
        counts = [0]
        for document, tokens in self.tokens.items():
            if document in chosen:
                cluster = self.clusters.get(document, document)
                sizes[cluster] = sizes.get(cluster, 0) + tokens
            counts.append(len(sizes))
        seen = sorted({counts[size] for size in self.sizes[: self.number + 1]} - {0})
        if not seen:
            return None
        if self.method == "group_sequential":
            return GroupSequential.at(seen, counts[-1])
        intervals = Betting.at(seen, counts[-1])
        return Betting(intervals.confidence, intervals.together, intervals.look, max(sizes.values()))


def drop_repeated_looks(
    sizes: Sequence[int], tokens: Mapping[int, int], clusters: Mapping[int, int]
) -> tuple[int, ...]:
    """The looks that see a text which no look before them saw, and the last one: copies alone are no further look."""
    drawn = [clusters.get(document, document) for document in tokens]
    seen = [len(set(drawn[:size])) for size in sizes]
    later = [*seen[1:], seen[-1] + 1]
    return tuple(size for size, now, then in zip(sizes, seen, later, strict=True) if now < then)


def select_waiting_rules(gates: Sequence[GateSpec], suite: SuiteSpec) -> list[GateSpec]:
    """The rules that extend the sample of a suite: blocking ones, and those with ``on_inconclusive: extend``.

    A rule that compares only the point estimate (``decide: point``) is never undecided, so it never extends the sample.
    """
    names = [name for measure in suite.measures for name in measure.metrics_by_document()]
    kept = []
    for gate in gates:
        rules = tuple(spec for spec in gate.rules if _waits_for_all(spec.rule, names))
        if rules:
            kept.append(gate.model_copy(update={"rules": rules}))
    return kept


def _waits_for_all(rule: Rule, names: Sequence[str]) -> bool:
    wants = rule.decide == "interval" and (rule.level == "block" or rule.on_inconclusive == "extend")
    return wants and any(could_match(rule.metric, name) for name in names)

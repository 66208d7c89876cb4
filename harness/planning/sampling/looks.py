"""Interim looks of sequential sampling: what was drawn so far, and the intervals valid at each look.

Drawn are the documents of a suite, or the items of a task: both are units in a random order, of which some are one
cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.planning.specs import GateSpec, SuiteSpec
from harness.records import Sequential
from harness.records.patterns import could_match
from harness.rules import Rule
from harness.statistics import Betting, GroupSequential, Intervals

if TYPE_CHECKING:
    import pandas as pd

    from harness.tables.access import Tables

DEFAULT: Sequential = "group_sequential"
"""The default method of intervals at interim looks.

Both methods keep false passes below 5 % whenever sampling stops (.github/COVERAGE.md). Group-sequential bounds decide
with far fewer documents, because they use the small variation between documents, as every interval of a fixed sample
size does; betting assumes only the range of values, and pays for what unseen documents could be.
"""


@dataclass(frozen=True)
class Look:
    """Interim look ``number`` (from 0) of those after ``sizes`` documents (or items).

    tokens: number of scored tokens (or items: 1) of every available document, by its index, in sampling order.
    clusters: the cluster of every document that duplicates another. task: whose items they are; empty: documents.
    """

    sizes: tuple[int, ...]
    number: int
    tokens: Mapping[int, int]
    method: Sequential = DEFAULT
    clusters: Mapping[int, int] = field(default_factory=dict)
    task: str = ""

    @property
    def units(self) -> str:
        """What is drawn."""
        return "items" if self.task else "documents"

    @property
    def drawn(self) -> frozenset[int]:
        """Indexes of the documents measured so far."""
        return frozenset(list(self.tokens)[: self.sizes[self.number]])

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that belong to the documents measured so far."""
        if self.task:
            return table[(table["task"] == self.task) & table["doc_id"].isin(self.drawn)]
        return table[table["document"].isin(self.drawn)]

    def intervals(self, part: Collection[int] | None = None) -> Intervals | None:
        """The intervals valid at this look, for all documents or some of them; None if none of these was measured yet.

        A slice has fewer documents at each look, and fewer in total: its error is spent by its own share. Duplicates
        carry no information, so shares are shares of clusters.
        """
        chosen = self.tokens.keys() if part is None else set(part)
        sizes: dict[int, int] = {}
        counts = [0]
        # Of items that were not drawn it is not known, and must not matter, whether somebody scored them already.
        known = self.drawn if self.task else self.tokens.keys()
        for document, tokens in self.tokens.items():
            if document in chosen:
                cluster = self.clusters.get(document, document) if document in known else document
                sizes[cluster] = sizes.get(cluster, 0) + tokens
            counts.append(len(sizes))
        seen = sorted({counts[size] for size in self.sizes[: self.number + 1]} - {0})
        if not seen:
            return None
        if self.method == "group_sequential":
            return GroupSequential.at(seen, counts[-1], units=self.units)
        intervals = Betting.at(seen, counts[-1], units=self.units)
        return replace(intervals, largest=max(sizes.values()))


def read_item_looks(tables: Tables, suite: str, method: Sequential = DEFAULT) -> dict[str, Look]:
    """The first look at every task of a suite whose items were drawn stage by stage, by the table ``item_order``.

    Which items are one cluster is known of those that were drawn. The others count as one each, so that the error that
    may be spent at a look is never too large.
    """
    order = tables.read(suite, "item_order")
    if order is None:
        return {}
    rows = tables.read(suite, "items", ("task", "doc_id", "doc_hash"))
    looks = {}
    for task, places in order.groupby("task", sort=False):
        numbers = places["doc_id"].tolist()
        sizes = tuple(places["stage"].value_counts().sort_index().cumsum().tolist())
        clusters = _find_clusters(numbers, rows[rows["task"] == task] if rows is not None else None)
        looks[str(task)] = Look(sizes, 0, dict.fromkeys(numbers, 1), method, clusters, str(task))
    return looks


def _find_clusters(numbers: Sequence[int], rows: pd.DataFrame | None) -> dict[int, int]:
    """The first item of the cluster of every item that has the hash of an earlier one."""
    hashes = {} if rows is None else dict(zip(rows["doc_id"].tolist(), rows["doc_hash"].tolist(), strict=True))
    first: dict[str, int] = {}
    drawn = [number for number in numbers if number in hashes]
    return {number: at for number in drawn if (at := first.setdefault(hashes[number], number)) != number}


def names_by_document(suite: SuiteSpec) -> list[str]:
    """The metrics of a suite that are measured again whenever further documents were drawn."""
    return [name for measure in suite.measures for name in measure.metrics_by_document()]


def select_waiting_rules(gates: Sequence[GateSpec], names: Sequence[str]) -> list[GateSpec]:
    """The rules that extend the sample of these metrics: blocking ones, and those with ``on_inconclusive: extend``.

    A rule that compares only the point estimate (``decide: point``) is never undecided, so it never extends the sample.
    """
    kept = []
    for gate in gates:
        rules = tuple(spec for spec in gate.rules if _waits_for_all(spec.rule, names))
        if rules:
            kept.append(gate.model_copy(update={"rules": rules}))
    return kept


def _waits_for_all(rule: Rule, names: Sequence[str]) -> bool:
    wants = rule.decide == "interval" and (rule.level == "block" or rule.on_inconclusive == "extend")
    return wants and any(could_match(rule.metric, name) for name in names)

"""Slices of the documents (by kind, by language, by length) on which rules are judged separately.

A measure that is ``by_document`` gets only the rows of the slice. The table ``documents`` says which documents belong
to a slice. If some documents have a kind (or language), those without one form a slice, so that every document belongs
to one; if none has, there are no slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.measures import Measure, hold_to_declared, skip_uncompared
from harness.planning.sampling.clusters import label_clusters, name_documents
from harness.planning.sampling.looks import Look
from harness.planning.specs import GateSpec
from harness.records import Measurement, Skipped, Slice
from harness.records.patterns import could_match
from harness.rules import Rule
from harness.system.foreign import guard

if TYPE_CHECKING:
    import pandas as pd

    from harness.statistics import Intervals

THIRDS = 3
"""Length has no natural classes. Thirds by number of tokens have about equally many documents, so that each has about
the same power; documents of equal length are never split."""
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class DocumentSet:
    """Some documents of a suite, by their index."""

    label: str
    value: str
    documents: frozenset[int]


def slice_patterns(gates: Sequence[GateSpec]) -> dict[str, tuple[str, ...]]:
    """The labels by which rules slice, and the metric patterns of each."""
    patterns: dict[str, tuple[str, ...]] = {}
    for gate in gates:
        for spec in gate.rules:
            if isinstance(spec.rule, Rule) and spec.rule.slices is not None:
                label = spec.rule.slices.partition("=")[0]
                patterns[label] = (*patterns.get(label, ()), spec.rule.metric)
    return patterns


def split_documents(documents: pd.DataFrame, label: str) -> list[DocumentSet]:
    """The slices of the table ``documents`` (scored ones only) by ``label``, in the order of their first document."""
    scored = documents[documents["tokens"] > 0]
    if label == "length":
        return _split_by_length(scored["document"].to_numpy(), scored["tokens"].to_numpy())
    if label not in scored.columns:
        return []
    if not (scored[label] != "").any():
        return []
    return [
        DocumentSet(label, str(value) or UNLABELLED, frozenset(rows["document"].tolist()))
        for value, rows in scored.groupby(label, sort=False)
    ]


def measure_slices(
    suite: str,
    documents: pd.DataFrame,
    measures: Sequence[Measure],
    read: Callable[[Measure], pd.DataFrame | None],
    wanted: dict[str, tuple[str, ...]],
    look: Look | None = None,
    uncompared: Mapping[str, str] | None = None,
) -> list[Slice]:
    """Measure every slice by every requested label, with the metrics requested for it.

    read: returns the table of a measure. Measures that are not by document are skipped. look: the interim look of a
    suite with sequential sampling. Its slices are those of all available documents, so that they are the same at every
    look, and a slice without measured documents is reported, not omitted. uncompared: as for ``skip_uncompared``.
    """
    slices = []
    measures = [measure for measure in measures if measure.by_document]
    tables = {measure.kind: read(measure) for measure in measures if _serves(measure, wanted)}
    for label, patterns in wanted.items():
        serving = [
            measure for measure in measures if _measures_any(measure, patterns) and tables[measure.kind] is not None
        ]
        for part in split_documents(documents, label):
            seen = part.documents if look is None else part.documents & look.drawn
            intervals = look.intervals(part.documents) if look else None
            results: list[Measurement | Skipped] = []
            for measure in serving:
                table = tables[measure.kind]
                if table is not None and seen:
                    rows = label_clusters(table[table["document"].isin(seen)], documents)
                    measured = _measure_slice(measure, rows, patterns, intervals, uncompared or {})
                    results += name_documents(measured, documents)
                else:
                    results += _skip_undrawn(measure, patterns)
            if results:
                slices.append(
                    Slice(
                        suite=suite,
                        label=label,
                        value=part.value,
                        documents=len(seen),
                        measurements=tuple(m for m in results if isinstance(m, Measurement)),
                        skipped=tuple(s for s in results if isinstance(s, Skipped)),
                    )
                )
    return slices


def _serves(measure: Measure, wanted: dict[str, tuple[str, ...]]) -> bool:
    return any(_measures_any(measure, patterns) for patterns in wanted.values())


def _measures_any(measure: Measure, patterns: Sequence[str]) -> bool:
    return any(could_match(pattern, metric.name) for metric in measure.produces() for pattern in patterns)


def _skip_undrawn(measure: Measure, patterns: Sequence[str]) -> list[Measurement | Skipped]:
    names = [metric.name for metric in measure.produces()]
    reason = "no document of this slice was measured"
    return [Skipped(measure=name, reason=reason) for name in names if any(could_match(p, name) for p in patterns)]


def _measure_slice(
    measure: Measure,
    rows: pd.DataFrame,
    patterns: Sequence[str],
    intervals: Intervals | None,
    uncompared: Mapping[str, str],
) -> list[Measurement | Skipped]:
    """The requested metrics of one measure on one slice. A measure that raises leaves a Skipped: its rules are
    errors."""
    try:
        with guard(f"the measure {measure.kind}"):
            declared = hold_to_declared(measure, measure.measure_at(rows, intervals))
            results = skip_uncompared(measure, declared, uncompared)
    except Exception as error:  # noqa: BLE001 - as for the whole: a plugin may raise anything, and costs its verdicts
        reason = f"measure {measure.kind} failed: {type(error).__name__}: {error}"
        results = [Skipped(measure=metric.name, reason=reason) for metric in measure.produces()]
    named = ((entry.name if isinstance(entry, Measurement) else entry.measure, entry) for entry in results)
    return [entry for name, entry in named if any(could_match(pattern, name) for pattern in patterns)]


def _split_by_length(documents: np.ndarray, tokens: np.ndarray) -> list[DocumentSet]:
    """Thirds from short to long, named by their number of scored tokens; fewer if there are few distinct lengths."""
    if not len(tokens):
        return []
    cuts = np.unique(np.quantile(tokens, np.arange(1, THIRDS) / THIRDS, method="higher"))
    member = np.searchsorted(cuts, tokens, side="left")
    found = []
    for part in np.unique(member):
        inside = member == part
        low, high = int(tokens[inside].min()), int(tokens[inside].max())
        value = f"{low} to {high} tokens" if low != high else f"{low} tokens"
        found.append(DocumentSet("length", value, frozenset(documents[inside].tolist())))
    return found

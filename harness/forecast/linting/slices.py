"""Finds slices that no run can have: of metrics that are not by document, or by labels that no document has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from harness.data.documents import read_documents
from harness.forecast.linting.evidence import Evidence
from harness.forecast.linting.findings import Finding, key_of, weight
from harness.measures import load_measures
from harness.planning.sampling.slices import UNLABELLED
from harness.planning.specs import RuleSpec, SuiteSpec
from harness.records import DocumentsSpec, HubData
from harness.records.patterns import could_match, matches
from harness.system.resources import POCKET_SPLITS


def find_unreachable(index: int, spec: RuleSpec, evidence: Evidence) -> Iterator[Finding]:
    """Defects of the slices that a rule names: the rule is then an error in every run."""
    rule = spec.rule
    if rule.slices is None:
        return
    key, why = key_of(index, spec, "slices"), "a rule on slices that nothing measures is an error in every run"
    if _cannot_slice(rule.metric, evidence):
        what = f"slices of {rule.metric}, which is measured over all documents at once"
        do = "name a metric that is computed document by document (by token, by layer), or remove slices"
        yield Finding(weight(spec), spec.where, key, what, why, do)
        return
    label, _, pattern = rule.slices.partition("=")
    measuring = [suite for suite in evidence.suites if _yields_by_document(suite, rule.metric)]
    known = [_values(suite.documents, label) for suite in measuring]
    if label == "length" or not known or None in known:
        return
    values = {value for found in known for value in found or ()}
    if any(matches(pattern or "*", value) for value in values):
        return
    names = ", ".join(suite.name for suite in measuring)
    what = f"slices by {label}, which no document of {names} has"
    do = f"give the documents a {label}, or slice by length"
    if values:
        what = f"slices {rule.slices}, and the documents of {names} have {label} {_join(values)}"
        do = f"write {label}= and one of these, or {label} alone for all"
    yield Finding(weight(spec), spec.where, key, what, why, do)


def _cannot_slice(pattern: str, evidence: Evidence) -> bool:
    """Whether no measure behind a pattern is by document; one that does not load may be."""
    planned = [(measure, measure.produces()) for suite in evidence.suites for measure in suite.measures]
    behind = [
        measure
        for measure, metrics in planned or load_measures()
        if any(could_match(pattern, metric.name) for metric in metrics)
    ]
    return bool(behind) and not any(measure is None or measure.by_document for measure in behind)


def _yields_by_document(suite: SuiteSpec, pattern: str) -> bool:
    return any(
        could_match(pattern, metric.name)
        for measure in suite.measures
        if measure.by_document
        for metric in measure.produces()
    )


def _values(spec: DocumentsSpec | None, label: str) -> set[str] | None:
    """The values of a label among the documents; empty if none has it, None if only the run will tell."""
    if spec is None or isinstance(spec.data, HubData):
        return None
    if spec.packed:
        return {"packed"} if label == "kind" else set()
    if spec.data in POCKET_SPLITS:
        documents = read_documents(spec.data, spec.max, seed=spec.seed)
        return {document.kind for document in documents} if label == "kind" else set()
    return _read_labels(Path(spec.data), label, spec.max) if spec.data.endswith(".jsonl") else set()


def _read_labels(path: Path, label: str, most: int | None) -> set[str] | None:
    """The records of the file; None if it cannot be read: the run will report why."""
    try:
        with path.open(encoding="utf-8") as stream:
            rows = [json.loads(line) for _, line in zip(range(most or 10**9), filter(str.strip, stream), strict=False)]
    except (OSError, ValueError):
        return None
    given = [row.get(label) for row in rows if isinstance(row, dict)]
    values = {value for value in given if isinstance(value, str) and value}
    return values | ({UNLABELLED} if values and len([v for v in given if v in values]) < len(rows) else set())


def _join(values: set[str]) -> str:
    shown = sorted(values)[:5]
    return ", ".join(shown) + (f" and {len(values) - 5} more" if len(values) > 5 else "")

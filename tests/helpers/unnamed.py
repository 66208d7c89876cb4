"""Measurements without the names of documents."""

from __future__ import annotations

from collections.abc import Iterable

from harness.records import Measurement, Skipped


def without_names(found: Iterable[Measurement | Skipped]) -> list[Measurement | Skipped]:
    """What a measure found, but for the label that names a document: that alone depends on how documents are called."""
    kept = []
    for entry in found:
        labels = {key: value for key, value in entry.labels.items() if key != "worst_document"}
        kept.append(entry.model_copy(update={"labels": labels}))
    return kept

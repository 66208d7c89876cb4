"""Counts documents and task items of a plan, as far as files tell without a model."""

from __future__ import annotations

from pathlib import Path

from harness.data.documents import POCKET_COUNT, documents_in
from harness.records import DocumentsSpec, HubData
from harness.system.resources import POCKET_SPLITS


def document_count(spec: DocumentsSpec | None) -> int | None:
    """Independent documents (or windows) of a suite; None if only the data would tell."""
    if spec is None:
        return 0
    if spec.packed or isinstance(spec.data, HubData):
        return None if spec.packed else spec.max
    if spec.data in POCKET_SPLITS:
        return spec.max or POCKET_COUNT
    count = documents_in(Path(spec.data), spec.split_on)
    return spec.max if count is None else min(count, spec.max or count)

"""Clusters of documents: all copies of a text count as one, because a copy adds no evidence about other texts.

Measures take the column ``document`` of their table as the label of independent clusters. The labels are merged here,
once, after the rows of a look or of a slice were chosen by document: no measure, built in or from outside, has to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.records import Measurement, Skipped

if TYPE_CHECKING:
    import pandas as pd

DOCUMENT = "worst_document"
"""A label whose value is the index of a document, until the run replaces it by the document's id."""


def label_clusters(table: pd.DataFrame, documents: pd.DataFrame | None) -> pd.DataFrame:
    """``table`` with the cluster of each row's document in place of the document; unchanged where there are no copies.

    documents: the table of that name. Tables of earlier versions have no column ``cluster``: each document of theirs is
    a cluster.
    """
    if documents is None or "cluster" not in documents.columns or "document" not in table.columns:
        return table
    copies = documents[documents["cluster"].notna() & (documents["cluster"] != documents["document"])]
    if copies.empty:
        return table
    clusters = dict(zip(copies["document"].tolist(), copies["cluster"].astype("int64").tolist(), strict=True))
    labels = table["document"].map(lambda document: clusters.get(document, document))
    return table.assign(document=labels.astype(table["document"].dtype))


def name_documents(
    found: Sequence[Measurement | Skipped], documents: pd.DataFrame | None
) -> list[Measurement | Skipped]:
    """Measurements whose label ``worst_document`` is the id of the document instead of its index."""
    if documents is None or not any(DOCUMENT in entry.labels for entry in found):
        return list(found)
    ids = dict(zip(documents["document"].astype(str), documents["id"].astype(str), strict=True))

    def name_document(entry: Measurement | Skipped) -> Measurement | Skipped:
        if DOCUMENT not in entry.labels:
            return entry
        index = entry.labels[DOCUMENT]
        return entry.model_copy(update={"labels": entry.labels | {DOCUMENT: ids.get(index, index)}})

    return [name_document(entry) for entry in found]

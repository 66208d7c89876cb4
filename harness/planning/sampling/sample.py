"""What interim looks know of the documents that may be drawn: their order, sizes and clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from harness.data.encoding import EncodedDocument


@dataclass(frozen=True)
class Sample:
    """The documents with something to score, in sampling order.

    tokens: number of scored tokens of each, by its index. clusters: the cluster of every document that duplicates
    another.
    """

    tokens: Mapping[int, int]
    clusters: Mapping[int, int]

    @staticmethod
    def of_documents(documents: Sequence[EncodedDocument]) -> Sample:
        """The sample of encoded documents."""
        tokens = {document.index: document.tokens for document in documents if document.tokens > 0}
        return Sample(tokens, {each.index: each.cluster for each in documents if each.duplicate_of is not None})

    @staticmethod
    def of_table(documents: pd.DataFrame) -> Sample:
        """The sample of documents as a pass has recorded them in the table ``documents``."""
        scored = documents[documents["tokens"] > 0]
        copies = documents[documents["cluster"] != documents["document"]]
        return Sample(
            {int(index): int(tokens) for index, tokens in zip(scored["document"], scored["tokens"], strict=True)},
            {int(index): int(cluster) for index, cluster in zip(copies["document"], copies["cluster"], strict=True)},
        )

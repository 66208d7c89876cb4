"""Calibration documents: the data to which a variant is fitted while it is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.data.contamination import DocumentIndex
from harness.data.encoding import EncodedDocument, documents_sha256
from harness.records import CalibrationData, Note


@dataclass(frozen=True)
class CalibrationDocuments:
    """Encoded calibration documents, shared by all variants with the same calibration settings."""

    source: str
    documents: tuple[EncodedDocument, ...]
    seen: DocumentIndex
    notes: tuple[Note, ...]

    @property
    def ids(self) -> list[Tensor]:
        """Token ids, one 1-D int64 tensor per document."""
        return [torch.from_numpy(document.ids) for document in self.documents]

    @property
    def record(self) -> CalibrationData:
        """The description of the documents in run.json."""
        return CalibrationData(
            source=self.source,
            documents=len(self.documents),
            tokens=sum(len(document.ids) for document in self.documents),
            sha256=documents_sha256(self.documents),
        )


@dataclass(frozen=True)
class Calibrated:
    """The calibration data of a variant, with statistics of the finished variant on it.

    ranges: smallest and largest input of each linear layer, by name; empty if not requested. tokens: number of
    calibration tokens routed to each expert, by the path of its mixture; empty for dense models.
    """

    data: CalibrationDocuments
    ranges: Mapping[str, tuple[float, float]]
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

"""Calibration documents: what a variant is fitted to while it is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.data.contamination import Seen
from harness.data.encoding import EncodedDocument, documents_sha256
from harness.records import CalibrationData, Note


@dataclass(frozen=True)
class CalibrationDocuments:
    """Encoded calibration documents; every variant that asks for the same ones shares them."""

    source: str
    documents: tuple[EncodedDocument, ...]
    seen: Seen
    notes: tuple[Note, ...]

    @property
    def ids(self) -> list[Tensor]:
        """Token ids, one 1-D int64 tensor a document."""
        return [torch.from_numpy(document.ids) for document in self.documents]

    @property
    def record(self) -> CalibrationData:
        """What run.json says about them."""
        return CalibrationData(
            source=self.source,
            documents=len(self.documents),
            tokens=sum(len(document.ids) for document in self.documents),
            sha256=documents_sha256(self.documents),
        )


@dataclass(frozen=True)
class Calibrated:
    """What a variant was fitted to.

    ranges: smallest and largest value that the linear layer of each name was given on the calibration documents,
    by the finished variant; empty where nobody asked for them. tokens: how many calibration tokens each expert was
    given by the finished variant, by the path of its mixture; empty for dense models.
    """

    data: CalibrationDocuments
    ranges: Mapping[str, tuple[float, float]]
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

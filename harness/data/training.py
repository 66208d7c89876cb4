"""Training texts: what a variant is trained on while it is made, and what is held out to evaluate that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.data.contamination import DocumentIndex
from harness.data.encoding import EncodedDocument, documents_sha256
from harness.records import Note, TrainingData
from harness.records.training import Fitted


@dataclass(frozen=True)
class TrainingDocuments:
    """Encoded texts, shared by all variants with the same training data. prompts: how many ids at the beginning of each
    document, held-out ones behind the others, are a prompt and not learned. seen: an index of all of them, held-out
    ones included: they decide which step is kept."""

    source: str
    documents: tuple[EncodedDocument, ...]
    held_out: tuple[EncodedDocument, ...]
    prompts: tuple[int, ...]
    seen: DocumentIndex
    notes: tuple[Note, ...]

    @property
    def texts(self) -> list[Tensor]:
        """Token ids that are trained on, one 1-D int64 tensor per document."""
        return [torch.from_numpy(document.ids) for document in self.documents]

    @property
    def held_out_texts(self) -> list[Tensor]:
        """Token ids of the held-out documents."""
        return [torch.from_numpy(document.ids) for document in self.held_out]

    @property
    def record(self) -> TrainingData:
        """The description of the texts in run.json."""
        return TrainingData(
            source=self.source,
            documents=len(self.documents),
            held_out=len(self.held_out),
            tokens=sum(len(document.ids) for document in self.documents),
            sha256=documents_sha256((*self.documents, *self.held_out)),
        )


@dataclass(frozen=True)
class Trained:
    """How a variant was trained: on which texts, and what each step that trained left."""

    data: TrainingDocuments
    fits: tuple[Fitted, ...]

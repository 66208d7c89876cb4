"""Batches of documents of like length, planned before anything runs: a resumed run forms the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.documents import EncodedDocument


@dataclass(frozen=True)
class Batch:
    """Documents that go through a model together, padded on the right to T positions."""

    index: int
    documents: tuple[EncodedDocument, ...]

    @property
    def unit(self) -> str:
        """Name under which the rows of the batch are committed."""
        return f"pass/{self.index}"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each document."""
        return tuple(len(document.ids) for document in self.documents)

    @property
    def width(self) -> int:
        """T: tokens of the longest document."""
        return max(self.lengths)

    @property
    def padded(self) -> bool:
        """Whether some positions are padding."""
        return min(self.lengths) < self.width

    def token_ids(self, device: torch.device) -> Tensor:
        """Token ids [B, T], int64; padding is id 0, which no statistic ever sees."""
        ids = torch.zeros(len(self.documents), self.width, dtype=torch.int64)
        for row, document in enumerate(self.documents):
            ids[row, : len(document.ids)] = torch.from_numpy(document.ids)
        return ids.to(device)

    def is_token(self, device: torch.device) -> Tensor:
        """[B, T]: True at tokens, False at padding."""
        positions = torch.arange(self.width)
        return (positions[None, :] < torch.tensor(self.lengths)[:, None]).to(device)

    def scored(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Flat indices into [B*T] of the positions that predict a token, by document, and those tokens."""
        places = [row * self.width + torch.arange(length - 1) for row, length in enumerate(self.lengths)]
        targets = [torch.from_numpy(document.ids[1:]) for document in self.documents]
        return torch.cat(places).to(device), torch.cat(targets).to(device)


def plan_batches(documents: Sequence[EncodedDocument], tokens: int) -> list[Batch]:
    """Batches of at most ``tokens`` positions (a longer document stands alone), the longest documents first.

    Skipped documents and those with fewer than two tokens have nothing to score and are left out. Longest
    first, so that a batch too large for the memory shows itself at once. Ties keep the order of the
    documents.
    """
    kept = [document for document in documents if not document.skipped and len(document.ids) > 1]
    kept.sort(key=lambda document: (-len(document.ids), document.index))
    batches: list[Batch] = []
    while kept:
        count = max(1, tokens // len(kept[0].ids))
        batches.append(Batch(len(batches), tuple(kept[:count])))
        kept = kept[count:]
    return batches

"""Batches of documents of similar length, and blocks of batches, planned before anything runs.

A resumed run forms the same ones, and so does every process that computes only some of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.data.encoding import EncodedDocument

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_BLOCKS = 32
"""Blocks of a stage. Every block stores sums over its tokens for each channel of each module until the pass is done:
more of them cost disk, fewer cost a killed run more, and leave less to hand out to others."""


@dataclass(frozen=True)
class Batch:
    """Documents that go through a model together, padded on the right to T positions.

    left: if above 0, they are padded on the left instead, each by at least this many positions.
    """

    index: int
    documents: tuple[EncodedDocument, ...]
    left: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each document."""
        return tuple(len(document.ids) for document in self.documents)

    @property
    def width(self) -> int:
        """T: tokens of the longest document plus its padding."""
        return max(self.lengths) + self.left

    @property
    def starts(self) -> tuple[int, ...]:
        """Position of the first token of each document."""
        return tuple(self.width - length if self.left else 0 for length in self.lengths)

    @property
    def has_padding(self) -> bool:
        """Whether some positions are padding."""
        return min(self.lengths) < self.width

    def token_ids(self, device: torch.device) -> Tensor:
        """Token ids [B, T], int64; padding is id 0, which no statistic includes."""
        import torch

        ids = torch.zeros(len(self.documents), self.width, dtype=torch.int64)
        for row, (start, document) in enumerate(zip(self.starts, self.documents, strict=True)):
            ids[row, start : start + len(document.ids)] = torch.from_numpy(document.ids)
        return ids.to(device)

    def is_token(self, device: torch.device) -> Tensor:
        """[B, T]: True at tokens, False at padding."""
        import torch

        places_T = torch.arange(self.width)[None, :]
        starts_B1 = torch.tensor(self.starts)[:, None]
        ends_B1 = starts_B1 + torch.tensor(self.lengths)[:, None]
        return ((starts_B1 <= places_T) & (places_T < ends_B1)).to(device)

    def positions(self, device: torch.device) -> Tensor:
        """[B, T]: number of tokens of the document before each position; 0 at left padding."""
        import torch

        places_BT = torch.arange(self.width)[None, :] - torch.tensor(self.starts)[:, None]
        return places_BT.clamp(min=0).to(device)

    def index_scored(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Flat indices into [B*T] of the positions that predict a token, by document, and the predicted tokens."""
        import torch

        starts = [row * self.width + start for row, start in enumerate(self.starts)]
        places = [start + torch.arange(length - 1) for start, length in zip(starts, self.lengths, strict=True)]
        targets = [torch.from_numpy(document.ids[1:]) for document in self.documents]
        return torch.cat(places).to(device), torch.cat(targets).to(device)


@dataclass(frozen=True)
class Block:
    """Batches whose rows are committed together."""

    index: int
    batches: tuple[Batch, ...]

    @property
    def unit(self) -> str:
        """Unit name under which the rows are committed."""
        return f"pass/{self.index}"


def plan_batches(documents: Sequence[EncodedDocument], tokens: int) -> list[Batch]:
    """Batches of at most ``tokens`` positions (a longer document is a batch of its own), the longest documents first.

    Skipped documents and those with fewer than two tokens have nothing to score and are left out. Longest first, so
    that a batch too large for memory fails at once. Ties keep the order of the documents.
    """
    kept = [document for document in documents if not document.skipped and len(document.ids) > 1]
    kept.sort(key=lambda document: (-len(document.ids), document.index))
    batches: list[Batch] = []
    while kept:
        count = max(1, tokens // len(kept[0].ids))
        batches.append(Batch(len(batches), tuple(kept[:count])))
        kept = kept[count:]
    return batches


def plan_stages(documents: Sequence[EncodedDocument], tokens: int, sizes: Sequence[int] = ()) -> list[list[Block]]:
    """Blocks for each interim look: stage i holds the documents between ``sizes[i − 1]`` and ``sizes[i]``.

    sizes count documents with something to score, in their order. Without sizes there is one stage with all documents.
    Blocks and batches are numbered across stages.
    """
    kept = [document for document in documents if document.tokens > 0]
    stages: list[list[Block]] = []
    done = 0
    for start, end in pairwise((0, *(sizes or (len(kept),)))):
        batches = [replace(each, index=done + each.index) for each in plan_batches(kept[start:end], tokens)]
        first, size = sum(map(len, stages)), -(-len(batches) // MOST_BLOCKS) or 1
        parts = [tuple(batches[at : at + size]) for at in range(0, len(batches), size)]
        stages.append([Block(first + number, part) for number, part in enumerate(parts)])
        done += len(batches)
    return stages

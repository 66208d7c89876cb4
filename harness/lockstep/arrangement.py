"""Other ways to run the documents of a batch, of which everything that watches sees no more than other rounding.

The parts of a batch run one after the other; what a module gave at each token is put where it would stand if the
batch had run as one, so that probes compare like with like.

Legend: B documents, T positions of the batch, P positions of a part, N tokens, H width of a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from harness.lockstep.batches import Batch
from harness.lockstep.recording import Tap, check_rows

Arrange = Callable[[Batch], Sequence[Batch]]
"""From a batch to the parts that run instead: each of its documents in at least one, other documents in none."""

SPARE = 8
"""Positions of padding on the left that every document gets at least, so that batches of one length have some too."""


def one_by_one(batch: Batch) -> list[Batch]:
    """Each document alone; one that is alone already runs beside a copy of itself."""
    if len(batch.documents) == 1:
        return [Batch(batch.index, batch.documents * 2)]
    return [Batch(batch.index, (document,)) for document in batch.documents]


def padded_left(batch: Batch) -> list[Batch]:
    """The same documents, with padding in front of them instead of behind."""
    return [Batch(batch.index, batch.documents, left=SPARE)]


def other_order(batch: Batch) -> list[Batch]:
    """The same documents from the last to the first, every other one apart: other rows, neighbours and widths."""
    backwards = batch.documents[::-1]
    return [Batch(batch.index, part) for part in (backwards[::2], backwards[1::2]) if part]


@dataclass(frozen=True)
class Move:
    """Of one part: the rows [N] of its [B*P] positions that count, and the rows [N] of the batch to which they go."""

    part: Batch
    source: Tensor
    target: Tensor


def moves(batch: Batch, parts: Sequence[Batch]) -> list[Move]:
    """How the tokens of all parts make up the batch; of a document that ran twice the first run counts.

    Raises ValueError for parts that are not the documents of the batch.
    """
    homes = {document.index: row * batch.width + batch.starts[row] for row, document in enumerate(batch.documents)}
    waiting, found = set(homes), []
    for part in parts:
        come, go = [], []
        for row, (document, length) in enumerate(zip(part.documents, part.lengths, strict=True)):
            if document.index in waiting:
                waiting.remove(document.index)
                come.append(row * part.width + part.starts[row] + torch.arange(length))
                go.append(homes[document.index] + torch.arange(length))
        empty = [torch.empty(0, dtype=torch.int64)]
        found.append(Move(part, torch.cat(come or empty), torch.cat(go or empty)))
    if waiting or any(document.index not in homes for part in parts for document in part.documents):
        raise ValueError(f"batch {batch.index}: its parts hold other documents, {len(waiting)} of it are missing")
    return found


@dataclass
class _Gathering:
    """What one module gave so far: a tensor [B*T, H] for each time that it ran in a part."""

    module: str
    taps: Sequence[Tap]
    rows: list[Tensor] = field(default_factory=list)
    calls: int = 0


class Gatherer:
    """Keeps what taps wait for until all parts of a batch have run."""

    def __init__(self) -> None:
        self._gatherings: list[_Gathering] = []
        self._positions = 0
        self._move: Move | None = None

    def gathered(self, taps: Mapping[str, Sequence[Tap]]) -> dict[str, list[Tap]]:
        """Taps for the modules of one side, behind which the given ones are called when the batch is complete."""
        made = {module: _Gathering(module, own) for module, own in taps.items()}
        self._gatherings += made.values()
        return {module: [partial(self._gather, gathering)] for module, gathering in made.items()}

    def begin(self, batch: Batch) -> None:
        """A batch begins."""
        self._positions = len(batch.documents) * batch.width
        for gathering in self._gatherings:
            gathering.rows = []

    def next_part(self, move: Move) -> None:
        """One of its parts is about to run."""
        self._move = move
        for gathering in self._gatherings:
            gathering.calls = 0

    def placed(self, values_PH: Tensor) -> Tensor:
        """Rows of the part that runs [B*P, H] where they belong in the batch [B*T, H]; zero elsewhere."""
        return self._put(values_PH, values_PH.new_zeros(self._positions, values_PH.shape[-1]))

    def end(self) -> None:
        """All parts have run: let every tap see its module."""
        for gathering in self._gatherings:
            rows, gathering.rows = gathering.rows, []
            for values_NH in rows:
                for tap in gathering.taps:
                    tap(values_NH)

    def _gather(self, gathering: _Gathering, values_PH: Tensor) -> None:
        if self._move is None:
            return
        check_rows(gathering.module, values_PH, self._move.part)
        if gathering.calls == len(gathering.rows):
            gathering.rows.append(self.placed(values_PH))
        else:
            self._put(values_PH, gathering.rows[gathering.calls])
        gathering.calls += 1

    def _put(self, values_PH: Tensor, into_NH: Tensor) -> Tensor:
        if self._move is None:
            raise ValueError("no part of a batch runs")
        source_N, target_N = (rows.to(values_PH.device) for rows in (self._move.source, self._move.target))
        into_NH[target_N] = values_PH[source_N]
        return into_NH

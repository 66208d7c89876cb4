"""Alternative batch layouts (one by one, left-padded, reordered); probes must see the same values up to rounding.

The parts of a batch run one after the other; the values of a module at each token are moved to where they would be if
the batch had run as one, so that probes compare corresponding rows.

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
"""Maps a batch to the parts that run instead: each of its documents in at least one part, and no others."""

SPARE_PADDING = 8
"""Minimum left padding of every document in positions, so that batches of equal lengths are padded too."""


def one_by_one(batch: Batch) -> list[Batch]:
    """Each document alone; a batch of one document is run with a copy of that document."""
    if len(batch.documents) == 1:
        return [Batch(batch.index, batch.documents * 2)]
    return [Batch(batch.index, (document,)) for document in batch.documents]


def pad_left(batch: Batch) -> list[Batch]:
    """The same documents, padded on the left instead of the right."""
    return [Batch(batch.index, batch.documents, left=SPARE_PADDING)]


def reorder(batch: Batch) -> list[Batch]:
    """The same documents in reverse order, split into every other one: different rows, neighbours and widths."""
    backwards = batch.documents[::-1]
    return [Batch(batch.index, part) for part in (backwards[::2], backwards[1::2]) if part]


@dataclass(frozen=True)
class RowMove:
    """For one part: the relevant rows [N] of its [B*P] positions, and the rows [N] of the batch they map to."""

    part: Batch
    source: Tensor
    target: Tensor


def plan_moves(batch: Batch, parts: Sequence[Batch]) -> list[RowMove]:
    """Map the tokens of all parts to the rows of the batch; if a document ran twice, the first run is used.

    Raises ValueError if the parts do not contain exactly the documents of the batch.
    """
    homes = {document.index: row * batch.width + batch.starts[row] for row, document in enumerate(batch.documents)}
    waiting, row_moves = set(homes), []
    for part in parts:
        come, go = [], []
        for row, (document, length) in enumerate(zip(part.documents, part.lengths, strict=True)):
            if document.index in waiting:
                waiting.remove(document.index)
                come.append(row * part.width + part.starts[row] + torch.arange(length))
                go.append(homes[document.index] + torch.arange(length))
        empty = [torch.empty(0, dtype=torch.int64)]
        row_moves.append(RowMove(part, torch.cat(come or empty), torch.cat(go or empty)))
    if waiting or any(document.index not in homes for part in parts for document in part.documents):
        raise ValueError(f"batch {batch.index}: its parts differ in documents, {len(waiting)} are missing")
    return row_moves


@dataclass
class _Gathering:
    """The values of one module so far: a tensor [B*T, H] for each of its calls in a part."""

    module: str
    taps: Sequence[Tap]
    rows: list[Tensor] = field(default_factory=list)
    calls: int = 0


class Gatherer:
    """Collects the values of modules until all parts of a batch have run, then calls the taps."""

    def __init__(self) -> None:
        self._gatherings: list[_Gathering] = []
        self._positions = 0
        self._move: RowMove | None = None

    def wrap_taps(self, taps: Mapping[str, Sequence[Tap]]) -> dict[str, list[Tap]]:
        """Taps for the modules of one side that call the given taps once the batch is complete."""
        made = {module: _Gathering(module, own) for module, own in taps.items()}
        self._gatherings += made.values()
        return {module: [partial(self._gather, gathering)] for module, gathering in made.items()}

    def begin(self, batch: Batch) -> None:
        """Start a batch."""
        self._positions = len(batch.documents) * batch.width
        for gathering in self._gatherings:
            gathering.rows = []

    def next_part(self, move: RowMove) -> None:
        """Announce the next part of the batch."""
        self._move = move
        for gathering in self._gatherings:
            gathering.calls = 0

    def place_rows(self, values_PH: Tensor) -> Tensor:
        """Move rows of the current part [B*P, H] to their place in the batch [B*T, H]; zero elsewhere."""
        return self._put(values_PH, values_PH.new_zeros(self._positions, values_PH.shape[-1]))

    def end(self) -> None:
        """Call every tap with the values of its module, after all parts have run."""
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
            gathering.rows.append(self.place_rows(values_PH))
        else:
            self._put(values_PH, gathering.rows[gathering.calls])
        gathering.calls += 1

    def _put(self, values_PH: Tensor, into_NH: Tensor) -> Tensor:
        if self._move is None:
            raise ValueError("no part of a batch is running")
        source_N, target_N = (rows.to(values_PH.device) for rows in (self._move.source, self._move.target))
        into_NH[target_N] = values_PH[source_N]
        return into_NH

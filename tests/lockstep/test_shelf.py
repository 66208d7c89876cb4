"""Memory for what taps keep: the values that they give, and no memory in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.lockstep.shelf import Shelf
from harness.probes.channels import Channels
from harness.probes.layers import Layers
from tests.helpers.pass_pairs import damaged, llama, make_documents, observe


def test_rows_of_any_type_are_kept_exactly_one_behind_the_other() -> None:
    shelf = Shelf(14)
    given = [
        [torch.tensor([0.1, 2.0], dtype=torch.float32), torch.tensor([1 / 3, -1.0], dtype=torch.float64)],
        [torch.tensor([float("nan"), 1e-40, 3.0]), torch.tensor([4.0, float("inf"), 6.0])],
        [torch.tensor([7.0, 8.0, 9.0]), torch.tensor([7.0, 8.0, 9.0])],
    ]
    kept = [shelf.keep(rows) for rows in given]
    for found, rows in zip(kept, given, strict=True):
        expected = torch.stack([row.double() for row in rows])
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    places = [each.untyped_storage().data_ptr() for each in kept]
    assert places[0] == places[1], "in the piece that was taken first"
    assert places[2] != places[0], "which had no room for the last"


def test_a_pass_keeps_its_sums_in_one_piece_for_each_probe_and_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, kept = list[Shelf](), list[bool]()
    make, keep = Shelf.__init__, Shelf.keep

    def follow(shelf: Shelf, values: int) -> None:
        make(shelf, values)
        taken.append(shelf)

    def look(shelf: Shelf, rows: Sequence[Tensor]) -> Tensor:
        kept.append(sum(map(len, rows)) <= len(shelf.take(rows[0].device)))
        return keep(shelf, rows)

    monkeypatch.setattr(Shelf, "__init__", follow)
    monkeypatch.setattr(Shelf, "keep", look)
    documents, variants = make_documents((40, 40, 23)), [damaged(llama()), damaged(llama())]
    observe(tmp_path, llama(), variants, documents, [Layers(), Channels()], batch_tokens=40)
    assert len(taken) == 2 * 3
    assert len(kept) > 100
    assert all(kept)

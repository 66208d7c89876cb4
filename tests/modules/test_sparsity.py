"""Zeros are counted, and the pattern 2:4 is told from any other half of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.models.loading import load
from harness.modules.linears import matrices, weight_of
from harness.modules.sparsity import Sparsity, measure_sparsity, note_sparse
from harness.probes import Context
from harness.probes.weights import Weights
from harness.records import ModelSpec
from harness.tables.store import Store
from tests.helpers.pass_pairs import Silent
from tests.helpers.tiny_models import family, save


def prune(weight_OI: Tensor) -> None:
    """Zero the two smallest of every four neighbouring inputs, in place."""
    fours = weight_OI.reshape(-1, 4)
    fours.scatter_(1, fours.abs().topk(2, largest=False).indices, 0.0)
    weight_OI.copy_(fours.view(weight_OI.shape))


def test_the_pattern_is_that_of_neighbours_in_a_row() -> None:
    torch.manual_seed(0)
    weight_OI = torch.randn(24, 16)
    assert measure_sparsity(weight_OI) == Sparsity(0.0)
    prune(weight_OI)
    assert measure_sparsity(weight_OI) == Sparsity(0.5, "2:4")
    assert measure_sparsity(weight_OI.T.contiguous()).pattern == "", "along the outputs it is another pattern"
    late = weight_OI.clone()
    late[-1, :3] = 1.0
    assert measure_sparsity(late).pattern == "", "one group of three in the last row"
    halves = torch.randn(24, 16)
    halves[:, :8] = 0
    assert measure_sparsity(halves) == Sparsity(0.5)
    assert measure_sparsity(torch.zeros(4, 8)) == Sparsity(1.0), "nothing is left to multiply"


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_sparse_folder_is_recognised_and_counted(name: str, tmp_path: Path) -> None:
    model: Any = family(name)
    dense = load(ModelSpec(model=str(save(model, tmp_path / "dense"))), "dense")
    pruned = [path for path, module in matrices(model) if "head" not in path and not path.endswith(".gate")]
    for path, module in matrices(model):
        if path in pruned:
            prune(weight_of(module))
    sparse = load(ModelSpec(model=str(save(model, tmp_path / "sparse"))), "sparse")
    assert not [note for note in dense.notes if note.topic == "sparse weights"]
    (note,) = [note for note in sparse.notes if note.topic == "sparse weights"]
    total = sum(1 for _ in matrices(sparse.model))
    assert f"sparse: {len(pruned)} of {total} linear layers are sparse with the pattern 2:4" in note.text
    assert note.text == next(note_sparse("sparse", sparse.model)).text
    store = Store(tmp_path / "store", "key")
    Weights().observe(Context(dense, [sparse], [store.sink("s")], Silent()))
    table = store.read("s", "weights")
    store.close()
    assert table is not None
    linear = table[table["role"] == "linear"]
    names = {path.partition("[")[0] for path in pruned}
    for row in linear.to_dict("records"):
        expected = (0.5, "2:4") if row["side"] == "variant" and row["module"] in names else (0.0, "")
        assert (row["zeros"], row["pattern"]) == expected, row["module"]
    others = table[~table["role"].isin(["linear", "head"])]
    assert others["zeros"].isna().all()
    assert (others["pattern"] == "").all()

"""The probe ``coverage``: which experts, rows and modules the documents touched, and what differs elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from harness.lockstep.driver import shared_pass
from harness.measures.coverage import Coverage as Measured
from harness.models.language_model import LogitsModel
from harness.modules.experts import count_expert_tokens
from harness.probes.coverage import Coverage
from harness.records import Measurement
from harness.tables.store import Store
from tests.helpers.pass_pairs import Loaded, Silent, make_documents, observe
from tests.helpers.tiny_models import EXPERTS, family

LENGTHS = (9, 23, 2, 14)


def units(row: dict[Any, Any], column: str) -> list[int]:
    packed = np.frombuffer(bytes.fromhex(row[column]), dtype=np.uint8)
    return [int(number) for number in np.unpackbits(packed)[: row["units"]].nonzero()[0]]


def rows(tables: dict[str, pd.DataFrame], side: str = "variant") -> dict[str, dict[Any, Any]]:
    frame = tables["coverage"]
    return {str(row["name"]): row for row in frame[frame["side"] == side].to_dict("records")}


@pytest.mark.parametrize("name", [*EXPERTS, "listed_experts"])
def test_experts_are_touched_where_tokens_were_routed(name: str, tmp_path: Path) -> None:
    model, documents = family(name), make_documents((3, 2))
    _, (tables,) = observe(tmp_path, model, [copy.deepcopy(model)], documents, [Coverage()])
    counts = count_expert_tokens(model, [torch.from_numpy(document.ids) for document in documents])
    found = rows(tables)
    for module, tokens in counts.items():
        reached = [expert for expert, count in enumerate(tokens) if count]
        stacks = [row for part, row in found.items() if part.startswith(f"{module}.") and row["kind"] == "experts"]
        assert all(units(row, "seen") == reached for row in stacks)
        for expert, count in enumerate(tokens) if not stacks else ():
            own = [row for part, row in found.items() if part.startswith(f"{module}.{expert}.")]
            assert all(bool(units(row, "seen")) for row in own) if count else own


def test_rows_are_touched_where_documents_have_their_id(tmp_path: Path) -> None:
    model, documents = family("llama"), make_documents(LENGTHS)
    variant: Any = copy.deepcopy(model)
    variant.model.embed_tokens.weight.data[5] += 1
    _, (tables,) = observe(tmp_path, model, [variant], documents, [Coverage()])
    row = rows(tables)["model.embed_tokens"]
    assert units(row, "seen") == sorted({int(id_) for document in documents for id_ in document.ids})
    assert units(row, "changed") == [5]
    assert units(rows(tables, "reference")["model.embed_tokens"], "seen") == units(row, "seen")


def test_positions_beyond_the_longest_document_are_untouched(tmp_path: Path) -> None:
    model = family("gpt2")
    _, (tables,) = observe(tmp_path, model, [model], make_documents(LENGTHS), [Coverage()], batch_tokens=200)
    assert units(rows(tables)["transformer.wpe"], "seen") == list(range(max(LENGTHS)))


def test_zeros_in_an_expert_are_damage_and_rounding_is_none(tmp_path: Path) -> None:
    model, variant = family("mixtral"), copy.deepcopy(family("mixtral"))
    stack: Any = variant.model.layers[0].mlp.experts.down_proj
    stack.data[1] = 0
    stack.data[2] *= 1.1
    stack.data[3] = stack.data[3].bfloat16().float()
    _, (tables,) = observe(tmp_path, model, [variant], make_documents(LENGTHS), [Coverage()])
    row = rows(tables)["model.layers.0.mlp.experts.down_proj"]
    assert (units(row, "changed"), units(row, "damaged")) == ([1, 2], [1])
    assert units(rows(tables)["model.layers.1.mlp.experts.down_proj"], "changed") == []


def test_sizes_are_those_of_all_modules(tmp_path: Path) -> None:
    model = family("mixtral")
    _, (tables,) = observe(tmp_path, model, [model], make_documents(LENGTHS), [Coverage()])
    total = rows(tables)[""]
    assert (total["kind"], total["parameters"]) == ("total", sum(each.numel() for each in model.parameters()))


def test_a_resumed_pass_leaves_the_same_table(tmp_path: Path) -> None:
    from tests.lockstep.test_driver import Stop, Stopping

    reference, variant, documents = family("mixtral"), copy.deepcopy(family("mixtral")), make_documents()
    _, (whole,) = observe(tmp_path / "whole", reference, [variant], documents, [Coverage()])
    with pytest.raises(Stop):
        observe(tmp_path / "cut", reference, [variant], documents, [Coverage()], progress=Stopping(2))
    _, (again,) = observe(tmp_path / "cut", reference, [variant], documents, [Coverage()])
    pd.testing.assert_frame_equal(whole["coverage"], again["coverage"])


class Text:
    """A model whose weights stay inside an engine."""

    positions, end_tokens = None, ()

    def __init__(self, model: Any) -> None:
        self.model, self.vocabulary = model, model.config.vocab_size

    def text_logits(self, ids: Sequence[int], last: int) -> torch.Tensor:
        logits: torch.Tensor = self.model(torch.tensor([list(ids)])).logits[0, -last:]
        return logits


def test_of_an_engine_only_what_documents_touch_is_known(tmp_path: Path) -> None:
    model, documents = family("llama"), make_documents(LENGTHS)
    engine: Any = SimpleNamespace(
        name="engine",
        language_model=LogitsModel(Text(model)),
        identity=SimpleNamespace(modules=()),
        calibration=None,
        layers=None,
        unread=(),
        non_finite=(),
        tokenizer=None,
    )
    store, reference = Store(tmp_path / "store", "key"), cast(Any, Loaded("reference", model))
    report = shared_pass(reference, [engine], documents, [Coverage()], [store.sink("s")], Silent())
    table = store.read("s", "coverage")
    store.close()
    assert table is not None
    assert any("its engine keeps its weights to itself" in note.text for note in report.variant_notes[0])
    found = {entry.name: entry for entry in Measured().measure(table) if isinstance(entry, Measurement)}
    untouched = found["coverage.untouched_parameters"]
    assert 0 < (untouched.variant or 0) == untouched.reference
    assert found["coverage.untouched_compressed"].change == pytest.approx(untouched.reference)
    assert found["coverage.untouched_changed"].change == 0

"""The probe ``experts``: tokens of every expert, over batches with padding, for both forms of experts."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from harness.lockstep.driver import shared_pass
from harness.modules.experts import count_expert_tokens
from harness.probes.experts import Experts
from harness.tables.store import Store
from tests.helpers.pass_pairs import Loaded, Silent, make_documents, observe
from tests.helpers.tiny_models import EXPERTS, family

torch.set_num_threads(1)
LENGTHS = (9, 23, 2, 23, 14, 5, 31, 12)


def noisy(name: str) -> Any:
    model: Any = copy.deepcopy(family(name))
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std().nan_to_num(0) * torch.randn(parameter.shape, generator=chance))
    return model


def counted(model: Any, documents: Any) -> dict[str, tuple[int, ...]]:
    return count_expert_tokens(model, [torch.from_numpy(document.ids) for document in documents])


def tokens(table: pd.DataFrame, side: str) -> dict[str, tuple[int, ...]]:
    rows = table[table["side"] == side]
    return {str(module): tuple(part["tokens"]) for module, part in rows.groupby("module", sort=False)}


@pytest.mark.parametrize("name", [*EXPERTS, "listed_experts"])
def test_counts_are_those_of_every_document_alone(name: str, tmp_path: Path) -> None:
    reference, variant, documents = family(name), noisy(name), make_documents(LENGTHS)
    _, (tables,) = observe(tmp_path, reference, [variant], documents, [Experts()], batch_tokens=60)
    table = tables["experts"]
    assert tokens(table, "reference") == counted(reference, documents)
    found, wanted = tokens(table, "variant"), counted(variant, documents)
    assert found.keys() == wanted.keys()
    for module, counts in wanted.items():
        # A router that is all but undecided may choose otherwise for a text in company.
        assert sum(abs(a - b) for a, b in zip(found[module], counts, strict=True)) <= 2
        assert sum(found[module]) == 2 * sum(LENGTHS)
    assert (table["calibration"] == -1).all()


@pytest.mark.parametrize("name", EXPERTS)
def test_agreement_is_that_of_single_tokens(name: str, tmp_path: Path) -> None:
    reference, variant, documents = family(name), noisy(name), make_documents((12, 12))
    chosen: dict[int, list[Any]] = {0: [], 1: []}
    for number, model in enumerate((reference, variant)):
        experts: Any = model.get_submodule("model.layers.1.mlp.experts")
        handle = experts.register_forward_pre_hook(
            lambda _m, arguments, named, number=number: chosen[number].append([*arguments, *named.values()][1]),
            with_kwargs=True,
        )
        for document in documents:
            model(input_ids=torch.from_numpy(document.ids)[None])
        handle.remove()
    pairs = zip(torch.cat(chosen[0]).tolist(), torch.cat(chosen[1]).tolist(), strict=True)
    wanted = sum(len(set(a) & set(b)) for a, b in pairs)
    _, (tables,) = observe(tmp_path, reference, [variant], documents, [Experts()])
    rows = tables["experts"]
    rows = rows[(rows["side"] == "variant") & (rows["module"] == "model.layers.1.mlp.experts")]
    assert rows["agreeing"].sum() == wanted
    assert 0 < wanted < rows["tokens"].sum()


def test_the_same_model_agrees_with_itself(tmp_path: Path) -> None:
    reference = family("mixtral")
    _, (tables,) = observe(tmp_path, reference, [reference], make_documents(), [Experts()])
    rows = tables["experts"][tables["experts"]["side"] == "variant"]
    assert (rows["agreeing"] == rows["tokens"]).all()


def test_a_dense_model_leaves_one_row(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, family("llama"), [family("llama")], make_documents(), [Experts()])
    assert tables["experts"].to_dict("records") == [
        {"side": "none", "module": "", "expert": -1, "tokens": 0, "agreeing": -1, "calibration": -1}
    ]


def test_calibration_counts_stand_beside_those_of_the_variant(tmp_path: Path) -> None:
    model, documents = family("mixtral"), make_documents()
    given = {f"model.layers.{layer}.mlp.experts": (5 + layer, 0, 7, 2) for layer in range(2)}
    store = Store(tmp_path / "store", "key")
    variant: Any = Loaded("variant", model, SimpleNamespace(tokens=given))
    shared_pass(Loaded("reference", model), [variant], documents, [Experts()], [store.sink("s")], Silent())  # type: ignore[arg-type]
    table = store.read("s", "experts")
    store.close()
    assert table is not None
    rows = table[table["side"] == "variant"]
    assert rows["calibration"].tolist() == [5, 0, 7, 2, 6, 0, 7, 2]
    assert (table[table["side"] == "reference"]["calibration"] == -1).all()


def test_a_resumed_pass_leaves_the_same_table(tmp_path: Path) -> None:
    from tests.lockstep.test_driver import Stop, Stopping

    reference, variant, documents = family("mixtral"), noisy("mixtral"), make_documents()
    _, (whole,) = observe(tmp_path / "whole", reference, [variant], documents, [Experts()])
    with pytest.raises(Stop):
        observe(tmp_path / "cut", reference, [variant], documents, [Experts()], progress=Stopping(2))
    _, (again,) = observe(tmp_path / "cut", reference, [variant], documents, [Experts()])
    pd.testing.assert_frame_equal(whole["experts"], again["experts"])


def test_experts_that_are_given_other_rows_than_their_mixture_are_not_counted(tmp_path: Path) -> None:
    variant: Any = copy.deepcopy(family("listed_experts"))
    for layer in variant.model.layers:
        layer.mlp.experts[1].register_forward_pre_hook(lambda _m, arguments: (2 * arguments[0],))
        # The hook above runs before the one that counts, as if the mixture scaled what it hands on.
    _, (tables,) = observe(tmp_path, family("listed_experts"), [variant], make_documents(), [Experts()])
    rows = tables["experts"]
    assert (rows[rows["side"] == "variant"]["tokens"] == -1).all()
    assert (rows[rows["side"] == "reference"]["tokens"] >= 0).all()

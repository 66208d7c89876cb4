"""The probe ``tokens`` against float64 torch and scipy, document by document without padding or chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.probes.tokens import Tokens
from tests.helpers.logit_reference import agree, expected
from tests.helpers.pass_pairs import damaged, gemma2, gpt2, llama, louder, make_documents, observe

MODELS = {"llama": lambda: louder(llama(), 3.0), "gpt2": lambda: louder(gpt2(), 3.0), "gemma2": gemma2}


def plain_logits(model: Any, ids: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1].double()
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_every_column_agrees_with_plain_forwards_in_float64(tmp_path: Path, name: str) -> None:
    reference = MODELS[name]()
    variants = [damaged(reference, 0.03), damaged(reference, 0.2)]
    documents = make_documents()
    _, both = observe(tmp_path, reference, variants, documents, probes=(Tokens(),))
    for variant, tables in zip(variants, both, strict=True):
        table = tables["tokens"]
        assert len(table) == sum(len(d.ids) - 1 for d in documents)
        for document in documents:
            rows = table[table["document"] == document.index].reset_index(drop=True)
            assert rows["position"].tolist() == list(range(1, len(document.ids)))
            assert rows["target"].tolist() == document.ids[1:].tolist()
            assert rows["bytes"].tolist() == document.bytes[1:].tolist()
            sides = [plain_logits(model, document.ids) for model in (reference, variant)]
            wanted = expected(sides[0], sides[1], torch.from_numpy(document.ids[1:]))
            agree(rows[list(wanted.columns)], wanted)
            with pytest.raises(AssertionError):
                agree(
                    rows[list(wanted.columns)],
                    expected(sides[1], sides[0], torch.from_numpy(document.ids[1:])),
                )
            with pytest.raises(AssertionError):
                agree(rows[list(wanted.columns)], expected(sides[0], sides[1], torch.from_numpy(document.ids[:-1])))


def test_the_columns_are_those_that_measures_read(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, llama(), [llama()], probes=(Tokens(),))
    kinds = tables["tokens"].dtypes.astype(str).to_dict()
    integers = {"document", "position", "target", "reference_top1", "variant_top1"}
    assert {name for name, kind in kinds.items() if kind == "int32"} == integers
    assert {kind for name, kind in kinds.items() if name not in integers} == {"float32"}

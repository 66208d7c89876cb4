"""The probe ``texts`` against plain forwards in float64, and twins that differ in nothing but their token ids."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness.data.documents import RawDocument
from harness.probes import Context
from harness.probes.texts import UNIT_DOCUMENTS, Texts
from harness.records import DocumentsSpec
from tests.helpers.students import SENTENCES, Loaded, MemorySink, Silent, byte_tokenizer, make_model, twin

DOCUMENTS = [RawDocument(f"d{index}", "told", text, "en") for index, text in enumerate(SENTENCES)]
SPEC = DocumentsSpec(data="x.jsonl", context=96)


@pytest.fixture(scope="module")
def reference() -> Loaded:
    tokenizer = byte_tokenizer(330)
    return Loaded("reference", make_model(330), tokenizer)


def other(size: int = 290, seed: int = 1, bos: bool = True, **config: Any) -> Loaded:
    return Loaded("student", make_model(size, seed, **config), byte_tokenizer(size, bos, SENTENCES[:3]))


def observe(
    reference: Loaded,
    *variants: Loaded,
    documents: Sequence[RawDocument] = DOCUMENTS,
    spec: DocumentsSpec = SPEC,
    sinks: Sequence[MemorySink] = (),
) -> list[MemorySink]:
    sinks = sinks or [MemorySink() for _ in variants]
    Texts().observe(Context(reference, variants, sinks, Silent(), texts=documents, spec=spec))  # type: ignore[arg-type]
    return list(sinks)


def plain_nll(side: Loaded, text: str, bos: bool = True) -> np.ndarray:
    """Nats of every token of a text, straight from the model."""
    ids = ([0] if bos else []) + side.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logp = torch.log_softmax(side.model(torch.tensor([ids])).logits[0].double(), -1)
    return -logp[:-1].gather(-1, torch.tensor(ids)[1:, None])[:, 0].numpy()


def test_whole_documents_are_scored_as_plain_forwards_do_it(reference: Loaded) -> None:
    student = other()
    table = observe(reference, student)[0].table("texts")
    assert table["document"].tolist() == list(range(len(DOCUMENTS)))
    for row, document in zip(table.to_dict("records"), DOCUMENTS, strict=True):
        assert row["bytes"] == row["total_bytes"] == len(document.text.encode())
        for name, side in (("reference", reference), ("variant", student)):
            wanted = plain_nll(side, document.text)
            assert row[f"{name}_tokens"] == len(wanted)
            assert row[f"{name}_nll"] == pytest.approx(wanted.sum(), rel=1e-5)
    assert (table["reference_tokens"] != table["variant_tokens"]).any()
    assert (table["skipped"] == "").all()
    assert not table["lossy"].any()


def test_a_twin_under_other_ids_is_as_likely(reference: Loaded) -> None:
    same = Loaded("twin", *twin(reference.model, reference.tokenizer))
    ids = [side.tokenizer(SENTENCES[0], add_special_tokens=False)["input_ids"] for side in (reference, same)]
    assert ids[0] != ids[1]
    for spec in (SPEC, SPEC.model_copy(update={"context": 12})):
        table = observe(reference, same, spec=spec)[0].table("texts")
        np.testing.assert_allclose(table["variant_nll"], table["reference_nll"], rtol=1e-5)
        assert (table["variant_tokens"] == table["reference_tokens"]).all()


@pytest.mark.parametrize("packed", [False, True])
def test_documents_beyond_the_context_are_cut_at_the_same_character(reference: Loaded, packed: bool) -> None:
    student = other(max_position_embeddings=14)
    spec = SPEC.model_copy(update={"context": 20, "packed": packed})
    table = observe(reference, student, spec=spec)[0].table("texts")
    by_document = table.groupby("document")
    total = by_document["bytes"].sum()
    sizes = [len(document.text.encode()) for document in DOCUMENTS]
    assert by_document["total_bytes"].sum().tolist() == sizes
    assert table["reference_tokens"].max() <= 19
    assert table["variant_tokens"].max() <= 13
    if packed:
        assert total.tolist() == sizes
        assert by_document.size().max() > 1
    else:
        assert (total < sizes).any()
    first = table[table["window"] == 0]
    for row, document in zip(first.to_dict("records"), DOCUMENTS, strict=True):
        begun = document.text.encode()[: row["bytes"]].decode()
        for name, side in (("reference", reference), ("variant", student)):
            count = int(row[f"{name}_tokens"])
            assert row[f"{name}_nll"] == pytest.approx(plain_nll(side, document.text)[:count].sum(), rel=1e-5)
            ids = side.tokenizer(document.text, add_special_tokens=False)["input_ids"][:count]
            assert side.tokenizer.decode(ids) == begun


def test_without_bos_on_one_side_the_first_token_is_left_out_on_both(reference: Loaded) -> None:
    student = other(bos=False)
    table = observe(reference, student)[0].table("texts")
    assert (table["bytes"] < table["total_bytes"]).all()
    for row, document in zip(table.to_dict("records"), DOCUMENTS, strict=True):
        scored = document.text.encode()[-row["bytes"] :].decode()
        ids = reference.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        assert reference.tokenizer.decode(ids[-row["reference_tokens"] :]) == scored
        wanted = plain_nll(student, document.text, bos=False)[-row["variant_tokens"] :]
        assert row["variant_nll"] == pytest.approx(wanted.sum(), rel=1e-5)
        assert row["variant_tokens"] < len(student.tokenizer(document.text, add_special_tokens=False)["input_ids"])


def test_texts_that_a_side_does_not_give_back_are_named_and_not_scored(reference: Loaded) -> None:
    from tokenizers import normalizers

    student = other()
    student.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    table = observe(reference, student)[0].table("texts")
    assert set(table["skipped"]) == {"the variant's tokenizer does not give the text back"}
    assert table["lossy"].all()
    assert (table["bytes"] == 0).all()
    flipped = observe(Loaded("lower", student.model, student.tokenizer), reference)[0].table("texts")
    assert set(flipped["skipped"]) == {"the reference's tokenizer does not give the text back"}


def test_nan_stays_visible_on_its_side(reference: Loaded) -> None:
    student = other()
    with torch.no_grad():
        student.model.lm_head.weight[5] = float("nan")
    table = observe(reference, student)[0].table("texts")
    assert table["variant_nll"].isna().all()
    assert table["reference_nll"].notna().all()


def test_several_variants_get_what_each_gets_alone_and_the_reference_runs_once(reference: Loaded) -> None:
    students = [other(), other(300, 2)]
    counted = copy.deepcopy(reference)
    rows = []
    counted.model.model.layers[0].register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    together = observe(counted, *students)
    batches = len(rows)
    for number, student in enumerate(students):
        rows.clear()
        (alone,) = observe(counted, student)
        assert len(rows) == batches
        pd.testing.assert_frame_equal(alone.table("texts"), together[number].table("texts"), rtol=1e-6)


def test_what_was_committed_is_not_computed_again(reference: Loaded) -> None:
    many = [RawDocument(f"d{i}", "", SENTENCES[i % 6], "") for i in range(UNIT_DOCUMENTS + 3)]
    student = other()
    (whole,) = observe(reference, student, documents=many)
    assert list(whole.units) == ["texts/0", "texts/1"]
    resumed = MemorySink({"texts/0": whole.units["texts/0"]})
    observe(reference, student, documents=many, sinks=[resumed])
    pd.testing.assert_frame_equal(resumed.table("texts"), whole.table("texts"), rtol=1e-6)
    assert resumed.table("texts")["document"].tolist() == list(range(len(many)))


def test_the_documents_table_serves_slices(reference: Loaded) -> None:
    frame = observe(reference, other())[0].table("documents")
    columns = ["document", "id", "kind", "tokens", "total_tokens", "cut", "skipped", "language", "cluster"]
    assert list(frame.columns) == columns
    assert frame["cluster"].tolist() == frame["document"].tolist(), "no two texts are the same"
    assert frame["language"].tolist() == ["en"] * len(DOCUMENTS)
    assert (frame["tokens"] > 0).all()
    assert not frame["cut"].any()

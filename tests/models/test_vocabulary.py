"""Padding of the vocabulary: whatever it holds, a variant that differs in nothing else does not change at all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.encoding import EncodedDocument
from harness.errors import ModelError
from harness.lockstep.driver import shared_pass
from harness.models.language_model import TransformersModel
from harness.models.vocabulary import count_common_logits, count_token_ids, explain_mismatch, group_by_vocabulary
from harness.probes.channels import Channels
from harness.probes.generations import Generations
from harness.probes.items import Items
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.tables.store import Store
from tests.helpers.logit_reference import expected
from tests.helpers.pass_pairs import as_bytes, damaged, tables_of
from tests.helpers.students import SENTENCES, Loaded, Silent, byte_tokenizer, make_model, padded
from tests.probes.test_generations import rows as generated
from tests.probes.test_items import CHOICE, CHOICE_DOCS, GENERATION, ROLLING, write_task
from tests.probes.test_items import make_model as item_model
from tests.probes.test_items import make_tokenizer as item_tokenizer
from tests.probes.test_items import observe as observe_items

FILLS = [0.0, 7.0, -3.0, float("nan"), float("inf")]
TOKENS = 300
ROWS = 20


@pytest.fixture(scope="module")
def reference() -> Loaded:
    return Loaded("reference", make_model(TOKENS), byte_tokenizer(TOKENS))


def documents(side: Loaded) -> list[EncodedDocument]:
    made = []
    for index, text in enumerate(SENTENCES):
        ids = torch.tensor([0, *side.tokenizer(text, add_special_tokens=False)["input_ids"]]).numpy()
        made.append(EncodedDocument(index, f"d{index}", "", ids, ids.astype("float32"), len(ids), False, ""))
    return made


def observe(folder: Path, reference: Loaded, *variants: Loaded) -> tuple[Any, list[dict[str, Any]]]:
    stores = [Store(folder / str(number), "key") for number in range(len(variants))]
    try:
        probes = (Tokens(), Layers(), Channels(threshold=1.5))
        sinks = [store.sink("s") for store in stores]
        report = shared_pass(reference, variants, documents(reference), probes, sinks, Silent(), batch_tokens=64)  # type: ignore[arg-type]
        return report, [tables_of(store) for store in stores]
    finally:
        for store in stores:
            store.close()


def wider(side: Loaded, fill: float = 7.0, rows: int = ROWS) -> Loaded:
    return Loaded("padded", padded(side.model, rows, fill), side.tokenizer)


@pytest.mark.parametrize("fill", FILLS)
def test_the_reference_with_padding_rows_changes_nothing_at_all(reference: Loaded, tmp_path: Path, fill: float) -> None:
    same = Loaded("same", reference.model, reference.tokenizer)
    report, (tables, plain) = observe(tmp_path, reference, wider(reference, fill), same)
    tokens = tables["tokens"]
    for column in ("kl", "reverse_kl", "max_abs_diff", "mean_abs_diff", "total_variation"):
        assert (tokens[column] == 0).all(), column
    for column in ("nll", "top1", "top1_p", "entropy"):
        assert (tokens[f"reference_{column}"] == tokens[f"variant_{column}"]).all()
    assert (tables["layers"]["sum_squared_error"] == 0).all()
    assert as_bytes({"tokens": tokens}) == as_bytes({"tokens": plain["tokens"]})
    (note,) = [note for note in report.variant_notes[0] if note.topic == "vocabulary"]
    assert f"{ROWS} padding rows of the variant and 0 of the reference" in note.text
    assert f"{TOKENS} logits per token" in note.text
    assert [note for note in report.variant_notes[1] if note.topic == "vocabulary"] == []


def test_a_narrower_variant_is_compared_over_the_same_tokens(reference: Loaded, tmp_path: Path) -> None:
    wide = Loaded("reference", padded(reference.model, ROWS, 5.0), reference.tokenizer)
    report, (tables,) = observe(tmp_path, wide, Loaded("narrow", reference.model, reference.tokenizer))
    assert (tables["tokens"]["kl"] == 0).all()
    assert "0 padding rows of the variant and 20 of the reference" in report.variant_notes[0][0].text


def test_damage_beside_padding_is_the_damage_without_it(reference: Loaded, tmp_path: Path) -> None:
    """Against float64 over the tokens alone; padding that took part would show in every probability."""
    variant = Loaded("damaged", damaged(reference.model, 0.02), reference.tokenizer)
    _, (with_rows, without) = observe(tmp_path, reference, wider(variant, 9.0), variant)
    assert as_bytes({"t": with_rows["tokens"]}) == as_bytes({"t": without["tokens"]})
    document = documents(reference)[2]
    ids = torch.from_numpy(document.ids)[None]
    with torch.inference_mode():
        sides = [model(ids).logits[0, :-1].double() for model in (reference.model, variant.model)]
    rows = with_rows["tokens"].query("document == 2").reset_index(drop=True)
    wanted = expected(sides[0], sides[1], ids[0, 1:])
    assert rows["kl"].to_numpy() == pytest.approx(wanted["kl"].to_numpy(), rel=1e-3, abs=1e-6)


def test_rows_that_are_tokens_are_no_padding(reference: Loaded, tmp_path: Path) -> None:
    larger = copy.deepcopy(reference.tokenizer)
    larger.add_tokens(["<extra>"])
    assert count_token_ids(larger) == TOKENS + 1
    variant = Loaded("more tokens", padded(reference.model, ROWS), larger)
    assert "differ by more than padding: tokens have ids up to 300" in explain_mismatch(reference, variant)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"more tokens: the variant has 320 logits per token, the reference 300"):
        observe(tmp_path, reference, variant)


def test_which_logits_count(reference: Loaded) -> None:
    tokenizers = [reference.tokenizer] * 2
    widths = [TransformersModel(model).vocabulary for model in (reference.model, padded(reference.model, 3))]
    assert widths == [TOKENS, TOKENS + 3]
    assert count_common_logits((320, 320), tokenizers) is None
    assert count_common_logits((300, 320), tokenizers) == count_common_logits((384, 320), tokenizers) == TOKENS
    assert count_common_logits((299, 320), tokenizers) is None
    variants = [wider(reference), reference, wider(reference, rows=4)]
    assert group_by_vocabulary(reference, variants) == {TOKENS: [0, 2], None: [1]}  # type: ignore[arg-type]


@pytest.mark.parametrize("fill", FILLS)
def test_generated_texts_do_not_change_either(reference: Loaded, fill: float) -> None:
    table = generated(reference, wider(reference, fill))
    assert not table["diverged"].any()
    assert table["variant_finite"].all()
    assert (table["reference_text"] == table["variant_text"]).all()


@pytest.mark.parametrize("fill", [7.0, float("nan")])
def test_nor_do_tasks(tmp_path: Path, fill: float) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    write_task(tmp_path, "write", GENERATION, docs)
    write_task(tmp_path, "pages", ROLLING, [{"text": "the sun is red ."}, {"text": "the sea is blue ."}])
    sides = [Loaded(name, item_model(), item_tokenizer()) for name in ("reference", "same")]
    wide = Loaded("padded", padded(sides[0].model, ROWS, fill), item_tokenizer())
    probe = Items(tasks=("colours", "write", "pages"), include=(str(tmp_path),))
    found, alike = (sink.rows for sink in observe_items(probe, sides[0], wide, sides[1]))  # type: ignore[arg-type]
    for name in ("score", "answer", "loglikelihoods"):
        assert list(found[f"reference_{name}"]) == list(found[f"variant_{name}"]), name
        assert list(found[f"variant_{name}"]) == list(alike[f"variant_{name}"]), name
    assert found["variant_score"].notna().all()


def test_generations_reads_the_padding_of_each_variant(reference: Loaded) -> None:
    """A variant of the same width is not masked: padding that a model would choose is its damage."""
    both = Loaded("wide reference", padded(reference.model, ROWS), reference.tokenizer)
    loud = Loaded("loud", padded(reference.model, ROWS, 50.0), reference.tokenizer)
    assert generated(both, loud)["diverged"].any()
    assert Generations().reads_documents

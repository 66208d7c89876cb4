"""Extra ids: left out of the comparison only if neither side gives them probability, and never hidden from greedy."""

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
from harness.models.vocabulary import count_common_logits, count_token_ids, explain_mismatch
from harness.probes.channels import Channels
from harness.probes.items import Items
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.tables.store import Store
from tests.helpers.logit_reference import expected
from tests.helpers.pass_pairs import as_bytes, damaged, tables_of
from tests.helpers.students import SENTENCES, Loaded, Silent, byte_tokenizer, make_model, padded
from tests.probes.test_generations import rows as generated
from tests.probes.test_items import CHOICE, CHOICE_DOCS, GENERATION, write_task
from tests.probes.test_items import make_model as item_model
from tests.probes.test_items import make_tokenizer as item_tokenizer
from tests.probes.test_items import observe as observe_items

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


def wider(side: Loaded, fill: float = 0.0, rows: int = ROWS) -> Loaded:
    return Loaded("padded", padded(side.model, rows, fill), side.tokenizer)


def test_the_reference_with_padding_rows_changes_nothing_at_all(reference: Loaded, tmp_path: Path) -> None:
    same = Loaded("same", reference.model, reference.tokenizer)
    report, (tables, plain) = observe(tmp_path, reference, wider(reference), same)
    tokens = tables["tokens"]
    for column in ("kl", "reverse_kl", "max_abs_diff", "mean_abs_diff", "total_variation"):
        assert (tokens[column] == 0).all(), column
    for column in ("nll", "top1", "top1_p", "entropy"):
        assert (tokens[f"reference_{column}"] == tokens[f"variant_{column}"]).all()
    assert (tables["layers"]["sum_squared_error"] == 0).all()
    assert as_bytes({"tokens": tokens}) == as_bytes({"tokens": plain["tokens"]})
    (note,) = [note for note in report.variant_notes[0] if note.topic == "vocabulary"]
    assert f"{ROWS} extra ids of the variant and 0 of the reference" in note.text
    assert f"{TOKENS} logits per token" in note.text
    assert [note for note in report.variant_notes[1] if note.topic == "vocabulary"] == []


def test_a_narrower_variant_is_compared_over_the_same_tokens(reference: Loaded, tmp_path: Path) -> None:
    wide = Loaded("reference", padded(reference.model, ROWS), reference.tokenizer)
    report, (tables,) = observe(tmp_path, wide, Loaded("narrow", reference.model, reference.tokenizer))
    assert (tables["tokens"]["kl"] == 0).all()
    assert "0 extra ids of the variant and 20 of the reference" in report.variant_notes[0][0].text


def test_damage_beside_padding_is_the_damage_without_it(reference: Loaded, tmp_path: Path) -> None:
    """Against float64 over the tokens alone; padding that took part would show in every probability."""
    variant = Loaded("damaged", damaged(reference.model, 0.02), reference.tokenizer)
    _, (with_rows, without) = observe(tmp_path, reference, wider(variant), variant)
    assert as_bytes({"t": with_rows["tokens"]}) == as_bytes({"t": without["tokens"]})
    document = documents(reference)[2]
    ids = torch.from_numpy(document.ids)[None]
    with torch.inference_mode():
        sides = [model(ids).logits[0, :-1].double() for model in (reference.model, variant.model)]
    rows = with_rows["tokens"].query("document == 2").reset_index(drop=True)
    wanted = expected(sides[0], sides[1], ids[0, 1:])
    assert rows["kl"].to_numpy() == pytest.approx(wanted["kl"].to_numpy(), rel=1e-3, abs=1e-6)


def extra_mass(side: Loaded, document: EncodedDocument, kept: int) -> torch.Tensor:
    """Probability of the ids from ``kept`` on at every scored position, in float64."""
    with torch.inference_mode():
        logits: torch.Tensor = side.model(torch.from_numpy(document.ids)[None]).logits[0, :-1].double()
    return logits.softmax(-1)[:, kept:].sum(-1)


@pytest.mark.parametrize("fill", [0.0, 0.05, 7.0])
def test_the_probability_of_extra_ids_is_that_of_the_whole_softmax(
    reference: Loaded, tmp_path: Path, fill: float
) -> None:
    variant = wider(reference, fill)
    _, (tables, back) = observe(tmp_path, reference, variant, variant)
    assert as_bytes({"x": tables["extra_ids"]}) == as_bytes({"x": back["extra_ids"]})
    rows = tables["extra_ids"].set_index("document")
    assert len(rows) == len(SENTENCES)
    for document in documents(reference):
        masses = extra_mass(variant, document, TOKENS)
        assert rows.loc[document.index, "variant_largest"] == pytest.approx(float(masses.max()), rel=1e-4)
        assert rows.loc[document.index, "variant_mean"] == pytest.approx(float(masses.mean()), rel=1e-4)
    assert (rows[["reference_largest", "reference_mean"]] == 0.0).all(axis=None)


@pytest.mark.parametrize("swapped", [False, True])
def test_top1_is_that_of_all_ids(reference: Loaded, tmp_path: Path, swapped: bool) -> None:
    loud = wider(reference, 7.0)
    sides = (loud, reference) if swapped else (reference, loud)
    _, (tables,) = observe(tmp_path, *sides)
    wanted = []
    for document in documents(reference):
        with torch.inference_mode():
            wanted.append(loud.model(torch.from_numpy(document.ids)[None]).logits[0, :-1].argmax(-1))
    found = tables["tokens"].sort_values(["document", "position"])["reference_top1" if swapped else "variant_top1"]
    assert found.tolist() == torch.cat(wanted).tolist()
    assert (found >= TOKENS).any()
    assert (found < TOKENS).any()


def test_rows_that_hold_nan_have_no_bound(reference: Loaded, tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, reference, wider(reference, float("nan")))
    assert tables["extra_ids"]["variant_largest"].isna().all()


def test_an_added_token_is_compared_over_the_ids_of_both(reference: Loaded, tmp_path: Path) -> None:
    larger = copy.deepcopy(reference.tokenizer)
    larger.add_tokens(["<extra>"])
    assert count_token_ids(larger) == TOKENS + 1
    variant = Loaded("one more token", padded(reference.model, 1), larger)
    assert explain_mismatch(reference, variant) == ""  # type: ignore[arg-type]
    _, (tables, same) = observe(tmp_path, reference, variant, Loaded("same", reference.model, reference.tokenizer))
    assert as_bytes({"t": tables["tokens"]}) == as_bytes({"t": same["tokens"]})


def test_rows_that_are_tokens_of_both_sides_are_not_extra(reference: Loaded, tmp_path: Path) -> None:
    larger = copy.deepcopy(reference.tokenizer)
    larger.add_tokens(["<extra>"])
    narrow = Loaded("reference", reference.model, larger)
    variant = Loaded("more tokens", padded(reference.model, ROWS), larger)
    assert "differ by more than padding: tokens have ids up to 300" in explain_mismatch(narrow, variant)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"more tokens: the variant has 320 logits per token, the reference 300"):
        observe(tmp_path, narrow, variant)


def test_which_logits_count(reference: Loaded) -> None:
    tokenizers = [reference.tokenizer] * 2
    widths = [TransformersModel(model).vocabulary for model in (reference.model, padded(reference.model, 3))]
    assert widths == [TOKENS, TOKENS + 3]
    assert count_common_logits((320, 320), tokenizers) is None
    assert count_common_logits((300, 320), tokenizers) == count_common_logits((384, 320), tokenizers) == TOKENS
    assert count_common_logits((299, 320), tokenizers) is None


def test_generated_texts_do_not_change_with_unused_rows(reference: Loaded) -> None:
    table = generated(reference, wider(reference))
    assert not table["diverged"].any()
    assert table["variant_finite"].all()
    assert (table["reference_text"] == table["variant_text"]).all()


def test_tasks_see_all_ids(tmp_path: Path) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    write_task(tmp_path, "write", GENERATION, [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS])
    sides = [Loaded(name, item_model(), item_tokenizer()) for name in ("reference", "same")]
    loud = Loaded("loud", padded(sides[0].model, ROWS, 50.0), item_tokenizer())
    probe = Items(tasks=("colours", "write"), include=(str(tmp_path),))
    found, alike = (sink.rows for sink in observe_items(probe, sides[0], loud, sides[1]))  # type: ignore[arg-type]
    assert list(alike["reference_answer"]) == list(alike["variant_answer"])
    written = found[found["task"] == "write"]
    assert (written["reference_answer"] != written["variant_answer"]).any()
    chosen = found[found["task"] == "colours"]
    less = [
        all(there <= here for here, there in zip(*pair, strict=True))
        for pair in zip(chosen["reference_loglikelihoods"], chosen["variant_loglikelihoods"], strict=True)
    ]
    assert all(less), "what extra ids have, no choice has"


@pytest.mark.parametrize("width", [0, ROWS], ids=["a narrower reference", "a reference as wide"])
def test_padding_that_greedy_decoding_would_choose_is_damage(reference: Loaded, width: int) -> None:
    other = Loaded("reference", padded(reference.model, width) if width else reference.model, reference.tokenizer)
    loud = Loaded("loud", padded(reference.model, ROWS, 50.0), reference.tokenizer)
    assert generated(other, loud)["diverged"].any()

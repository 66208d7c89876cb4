"""The probe ``calibration_data`` and what a run records about the documents that a variant was fitted to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from harness.data.calibration import Calibrated, CalibrationDocuments
from harness.data.contamination import DocumentIndex
from harness.errors import BackendError, DataError
from harness.lockstep.driver import shared_pass
from harness.probes.calibration_data import CalibrationData, count_outside
from harness.records import CalibrationSpec
from harness.running.calibration import input_ranges, read_calibration
from harness.running.pairs import Known, calibration_of
from harness.tables.store import Store
from tests.helpers.pass_pairs import Loaded, Silent, damaged, llama, make_documents, tables_of
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer
from tests.probes.test_channels import inputs_of

FITTED = (21, 9, 30)


class Numbers:
    """A tokenizer whose tokens are numbers; 0 opens documents."""

    all_special_ids = (0,)

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [str(row[0]) for row in rows]


def fitted(model: Any) -> Calibrated:
    documents = make_documents(FITTED, seed=5)
    data = CalibrationDocuments("made", tuple(documents), DocumentIndex(Numbers(), [d.ids for d in documents]), ())  # type: ignore[arg-type]
    return Calibrated(data, input_ranges(Loaded("v", model), data.ids))  # type: ignore[arg-type]


def observe(folder: Path, variants: list[Any], documents: Any, **settings: Any) -> list[dict[str, pd.DataFrame]]:
    stores = [Store(folder / str(number), "key") for number in range(len(variants))]
    sinks = [store.sink("s") for store in stores]
    reference = Loaded("reference", llama())
    try:
        shared_pass(reference, variants, documents, [CalibrationData()], sinks, Silent(), **settings)  # type: ignore[arg-type]
        return [tables_of(store) for store in stores]
    finally:
        for store in stores:
            store.close()


def test_ranges_and_counts_are_those_of_plain_forwards(tmp_path: Path) -> None:
    models = [damaged(llama(), size) for size in (0.03, 0.2)]
    variants = [Loaded("a", models[0], fitted(models[0])), Loaded("b", models[1], fitted(models[1]))]
    documents = make_documents()
    for variant, tables in zip(variants, observe(tmp_path, variants, documents, batch_tokens=48), strict=True):
        on_fitted = inputs_of(variant.model, make_documents(FITTED, seed=5))
        frame = tables["calibration_data"]
        ranges = frame[frame["part"] == "range"]
        assert set(ranges["module"]) == {
            f"model.layers.{i}.{name}"
            for i in range(2)
            for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
        }
        assert ranges["count"].sum() > 0
        for row in ranges.to_dict("records"):
            module = row["module"]
            rows = inputs_of(variant.model, [documents[row["document"]]])[module]
            low, high = on_fitted[module].min(), on_fitted[module].max()
            assert row["total"] == rows.size
            assert abs(row["count"] - ((rows < low) | (rows > high)).sum()) <= 1, "a value at the end may round over it"


def test_tokens_are_counted_by_document_without_special_ones(tmp_path: Path) -> None:
    model, documents = llama(), make_documents()
    (tables,) = observe(tmp_path, [Loaded("a", model, fitted(model))], documents, batch_tokens=48)
    frame = tables["calibration_data"]
    for part, texts in (("evaluation", documents), ("calibration", make_documents(FITTED, seed=5))):
        rows = frame[frame["part"] == part]
        for document in texts:
            own = rows[rows["document"] == document.index]
            expected = pd.Series(document.ids[document.ids != 0]).value_counts().to_dict()
            assert dict(zip(own["token"], own["count"], strict=True)) == expected


def test_documents_among_the_calibration_documents_are_found(tmp_path: Path) -> None:
    model = llama()
    known = make_documents(FITTED, seed=5)
    documents = make_documents([20, 40, 9])
    documents[1].ids[10:25] = known[2].ids[:15]
    documents[2].ids[:] = known[1].ids
    (tables,) = observe(tmp_path, [Loaded("a", model, fitted(model))], documents)
    overlap = tables["calibration_data"].query("part == 'overlap'").set_index("document")["count"]
    assert (overlap > 0).to_dict() == {0: False, 1: True, 2: True}


def test_a_variant_that_was_fitted_to_nothing_says_so(tmp_path: Path) -> None:
    model = llama()
    variants = [Loaded("a", model, fitted(model)), Loaded("b", model)]
    first, second = observe(tmp_path, variants, make_documents())
    assert set(second["calibration_data"]["part"]) == {"none"}
    assert set(first["calibration_data"]["part"]) == {"overlap", "evaluation", "calibration", "range"}
    assert first["calibration_data"].dtypes.to_dict() == second["calibration_data"].dtypes.to_dict()


def test_inputs_are_seen_before_the_module_rounds_them() -> None:
    model = llama()
    plain = input_ranges(Loaded("v", model), fitted(model).data.ids)  # type: ignore[arg-type]
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _m, inputs: (inputs[0].clamp(-1e-6, 1e-6),))
    found = input_ranges(Loaded("v", model), fitted(model).data.ids)  # type: ignore[arg-type]
    assert found["model.layers.0.mlp.down_proj"] == plain["model.layers.0.mlp.down_proj"]
    assert "lm_head" not in found


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), width=st.integers(1, 9), nan=st.booleans())
def test_counts_outside_a_range(seed: int, rows: int, width: int, nan: bool) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    if nan:
        values[rows // 2, 0] = np.nan
    expected = (~((values >= np.float32(-0.5)) & (values <= np.float32(1.0)))).sum(1)
    assert count_outside(torch.from_numpy(values), -0.5, 1.0).tolist() == expected.tolist()


# Reading


def loaded(tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    return SimpleNamespace(model=tiny_llama(), tokenizer=tokenizer or tiny_tokenizer())


def write(folder: Path, *texts: str) -> CalibrationSpec:
    path = folder / "fit.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return CalibrationSpec(data=str(path), documents=4, tokens=6)


def test_documents_are_read_cut_and_described(tmp_path: Path) -> None:
    found = read_calibration(write(tmp_path, "abc", "abcdefgh", "ab", "a", "never"), loaded())
    assert [len(ids) for ids in found.ids] == [4, 6, 3, 2]
    assert all(ids[0] == 0 and ids.dtype == torch.int64 for ids in found.ids)
    assert (found.record.documents, found.record.tokens) == (4, 15)
    assert found.record.source.endswith("fit.jsonl")
    assert found.notes == ()


def test_without_bos_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    spec = write(tmp_path, "abc", "abcd", "abc", "abc")
    with pytest.raises(DataError, match=r"calibration: .*no BOS token; set bos: false"):
        read_calibration(spec, loaded(tokenizer))
    found = read_calibration(spec.model_copy(update={"bos": False}), loaded(tokenizer))
    assert [len(ids) for ids in found.ids] == [3, 4, 3, 3]


def test_fewer_documents_than_asked_for_is_a_warning(tmp_path: Path) -> None:
    (note,) = read_calibration(write(tmp_path, "abc", "abcd"), loaded()).notes
    assert (note.level, note.topic) == ("warn", "calibration")
    assert note.text.startswith("4 documents were requested, 2 are available in ")


def test_nothing_to_read_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"calibration: .*found no document, expected at least one"):
        read_calibration(write(tmp_path), loaded())
    spec = write(tmp_path, "", "").model_copy(update={"bos": True})
    with pytest.raises(DataError, match="calibration: 2 of 2 documents have no token"):
        read_calibration(spec, loaded())


def test_shipped_documents_follow_their_seed() -> None:
    specs = [CalibrationSpec(data="pocket-calibration", documents=3, tokens=40, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (read_calibration(spec, loaded()).record for spec in specs)
    assert first == again
    assert first.sha256 != other.sha256
    assert other.source == "pocket-calibration, seed 1"


def test_variants_that_name_the_same_documents_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[CalibrationSpec] = []

    def count(spec: CalibrationSpec, _: Any) -> int:
        read.append(spec)
        return len(read)

    monkeypatch.setattr("harness.running.pairs.read_calibration", count)
    looks = SimpleNamespace(compress=(SimpleNamespace(calibrates=True),))
    blind = SimpleNamespace(compress=(SimpleNamespace(calibrates=False),))
    one, two = (CalibrationSpec(data="pocket-calibration", seed=seed) for seed in (0, 1))
    known = Known()
    plans = [SimpleNamespace(calibration=spec, variant=looks) for spec in (one, one, two, None)]
    plans.append(SimpleNamespace(calibration=two, variant=blind))
    found: list[Any] = [calibration_of(plan, None, known) for plan in plans]  # type: ignore[arg-type]
    assert found == [1, 1, 2, None, None]


def test_another_tokenizer_is_refused() -> None:
    from harness.running.variant import _check_tokenizer

    sides = [SimpleNamespace(identity=SimpleNamespace(tokenizer_sha256=value)) for value in "ab"]
    step = SimpleNamespace(kind="gptq", reads_tokens=True)
    plan: Any = SimpleNamespace(variant=SimpleNamespace(compress=(step,), model="student"))
    with pytest.raises(BackendError, match=r"gptq: .* student has another tokenizer"):
        _check_tokenizer(plan, *sides)  # type: ignore[arg-type]
    _check_tokenizer(plan, sides[0], sides[0])  # type: ignore[arg-type]

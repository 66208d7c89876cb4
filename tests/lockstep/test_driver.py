"""The shared pass as a whole: what it runs, what it refuses, how it resumes, what it leaves of the models."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from harness.errors import DataError, ModelError
from harness.lockstep import kernels
from harness.lockstep.batches import plan_batches
from harness.lockstep.decoder import Decoder, same_logits
from harness.lockstep.kernels import EAGER
from harness.lockstep.module_statistics import row_errors
from harness.models.language_model import TransformersModel
from harness.probes.channels import Channels
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from tests.helpers.pass_pairs import VOCABULARY, as_bytes, damaged, gemma2, gpt2, llama, louder, make_documents, observe
from tests.helpers.tiny_models import family

TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


class Shifted(type(llama())):  # type: ignore[misc]
    """A model whose logits depend on the token ids beside the hidden states: it has no second half."""

    def forward(self, input_ids: Any = None, **named: Any) -> Any:
        logits = super().forward(input_ids=input_ids, **named).logits
        return CausalLMOutputWithPast(logits=logits + input_ids[..., None] / 7)


class Stop(Exception):  # noqa: N818
    """Ends a pass from outside."""


class Stopping:
    """Progress that stops the pass before batch ``at``."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def step(self, _what: str, done: int, _of: int) -> None:
        if done == self.at:
            raise Stop
        self.steps += 1


@given(lengths=st.lists(st.integers(0, 40), max_size=30), tokens=st.integers(1, 100))
def test_batches_hold_every_document_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    batches = plan_batches(make_documents(lengths), tokens)
    planned = [document.index for batch in batches for document in batch.documents]
    assert sorted(planned) == [index for index, length in enumerate(lengths) if length > 1]
    assert all(len(b.documents) == 1 or len(b.documents) * b.width <= tokens for b in batches)
    widths = [length for batch in batches for length in batch.lengths]
    assert widths == sorted(widths, reverse=True)
    assert [batch.index for batch in batches] == list(range(len(batches)))


def test_scored_positions_predict_the_next_token_and_never_padding() -> None:
    (batch,) = plan_batches(make_documents([3, 5]), 10)
    places, targets = batch.index_scored(torch.device("cpu"))
    long, short = batch.documents
    assert places.tolist() == [0, 1, 2, 3, 5, 6]
    assert targets.tolist() == [*long.ids[1:], *short.ids[1:]]
    assert batch.is_token(torch.device("cpu")).tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    made = {"llama": llama(), "gemma2": gemma2(), "gpt2": gpt2()}
    made["cohere"] = CohereForCausalLM(CohereConfig(**TINY, intermediate_size=48, logit_scale=0.3))
    made["granite"] = GraniteForCausalLM(GraniteConfig(**TINY, intermediate_size=48, logits_scaling=5.0))
    made["llama4"] = family("llama4_text")  # Its base_model is itself.
    made["opt"] = OPTForCausalLM(OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=32))
    return made


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "cohere", "granite", "llama4", "opt"])
@torch.inference_mode()
def test_the_two_halves_give_the_logits_of_the_whole(name: str) -> None:
    model = models()[name].eval()
    decoder = Decoder(name, TransformersModel(model))
    ids = torch.from_numpy(make_documents([60])[0].ids)[None]
    plain = model(input_ids=ids).logits[0]
    prepared = decoder.prepare(ids)
    assert decoder.whole == ""
    assert torch.equal(prepared, plain)
    states = decoder.states(ids, None)
    assert states.shape == (60, 32)
    rows = torch.tensor([3, 59, 17])
    assert same_logits(decoder.logits(states[rows]), plain[rows])
    assert not same_logits(decoder.logits(states[rows]), plain[rows + -1])
    assert torch.equal(model(input_ids=ids).logits[0], plain), "the model must be left as it was"
    assert "forward" not in vars(model.base_model)


@torch.inference_mode()
def test_a_soft_cap_that_is_forgotten_would_be_seen() -> None:
    model = gemma2()
    ids = torch.from_numpy(make_documents([60])[0].ids)[None]
    hidden = model.model(input_ids=ids).last_hidden_state[0]
    assert not same_logits(model.lm_head(hidden), model(input_ids=ids).logits[0])


def test_a_model_without_a_second_half_is_kept_whole_and_still_right(tmp_path: Path) -> None:
    reference = Shifted(llama().config).eval()
    variant = damaged(reference)
    report, (tables,) = observe(tmp_path, reference, [variant])
    assert any("whole batches" in note.text for note in report.notes)
    assert any("whole batches" in note.text for note in report.variant_notes[0])
    document = make_documents()[4]
    ids = torch.from_numpy(document.ids)[None]
    with torch.inference_mode():
        logits = variant(input_ids=ids).logits[0, :-1].double()
    wanted = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    found = tables["tokens"].query("document == 4")["variant_nll"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_same_model_on_both_sides_changes_nothing_at_all(tmp_path: Path, make: Any) -> None:
    model = louder(make(), 3.0)
    _, both = observe(tmp_path, model, [model, copy.deepcopy(model)])
    for tables in both:
        tokens, layers, channels = tables["tokens"], tables["layers"], tables["channels"]
        for column in ("kl", "reverse_kl", "max_abs_diff", "mean_abs_diff", "total_variation"):
            assert (tokens[column] == 0).all(), column
        for column in ("nll", "top1", "top1_p", "entropy"):
            assert (tokens[f"reference_{column}"] == tokens[f"variant_{column}"]).all()
        assert (layers["sum_squared_error"] == 0).all()
        assert (layers["max_abs_diff"] == 0).all()
        assert (layers["dot"] == layers["sum_squared_reference"]).all()
        sides = {side: frame.drop(columns="side").reset_index(drop=True) for side, frame in channels.groupby("side")}
        pd.testing.assert_frame_equal(sides["reference"], sides["variant"])


def test_several_variants_get_what_each_gets_alone(tmp_path: Path) -> None:
    reference = llama()
    variants = [damaged(reference, size, seed) for size, seed in ((0.01, 1), (0.1, 2), (0.0, 3))]
    _, together = observe(tmp_path / "together", reference, variants)
    for number, variant in enumerate(variants):
        _, (alone,) = observe(tmp_path / f"alone{number}", reference, [variant])
        assert as_bytes(alone) == as_bytes(together[number])
    assert as_bytes(together[0]) != as_bytes(together[1])


def test_each_batch_runs_once_through_the_reference_and_once_through_each_variant(tmp_path: Path) -> None:
    def runs(folder: str, variants: int) -> list[int]:
        """How often the first block of every model ran."""
        reference = llama()
        models = [reference, *(damaged(reference) for _ in range(variants))]
        calls = [0] * len(models)

        def count(number: int) -> Any:
            def hook(*_arguments: Any) -> None:
                calls[number] += 1

            return hook

        for number, model in enumerate(models):
            model.model.layers[0].register_forward_hook(count(number))
        observe(tmp_path / folder, models[0], models[1:])
        return calls

    batches = len(plan_batches(make_documents(), 48))
    before = 5  # whole, in halves, surveyed, alone, in turns
    repeated = 2
    assert runs("one", 1) == [batches + before + repeated, batches + before]
    assert runs("three", 3) == [batches + before + repeated] + [batches + before] * 3


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_stopped_pass_goes_on_to_the_same_bytes(tmp_path: Path, at: int) -> None:
    reference = llama()
    variants = [damaged(reference), damaged(reference, 0.1)]
    whole_report, whole = observe(tmp_path / "whole", reference, variants)
    with pytest.raises(Stop):
        observe(tmp_path / "stopped", reference, variants, progress=Stopping(at))
    report, tables = observe(tmp_path / "stopped", reference, variants)
    assert [as_bytes(t) for t in tables] == [as_bytes(t) for t in whole]
    assert report == whole_report
    again, _ = observe(tmp_path / "stopped", reference, variants)
    assert again == whole_report


def test_a_variant_that_was_ahead_waits_for_the_other(tmp_path: Path) -> None:
    reference = llama()
    variants = [damaged(reference), damaged(reference, 0.1)]
    _, whole = observe(tmp_path / "whole", reference, variants)
    with pytest.raises(Stop):
        observe(tmp_path / "stopped", reference, variants[:1], progress=Stopping(2))
    _, tables = observe(tmp_path / "stopped", reference, variants)
    assert [as_bytes(t) for t in tables] == [as_bytes(t) for t in whole]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    reference = llama()
    variant = damaged(reference)
    documents = make_documents([20, 20, 9, 9, 9, 9, 9])
    _, (whole,) = observe(tmp_path / "whole", reference, [variant], documents)
    real = Decoder.states

    def small(self: Decoder, ids: Any, mask: Any, positions: Any = None) -> Any:
        if len(ids) > most and self.name != "reference":
            raise error
        return real(self, ids, mask, positions)

    most = 2
    monkeypatch.setattr(Decoder, "states", small)
    _, (halved,) = observe(tmp_path / "halved", reference, [variant], documents)
    for table in ("tokens", "layers", "channels"):
        pd.testing.assert_frame_equal(whole[table], halved[table], rtol=1e-4, atol=1e-5)


def test_a_document_that_does_not_fit_alone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, real = llama(), Decoder.states

    def small(self: Decoder, ids: Any, mask: Any, positions: Any = None) -> Any:
        if ids.shape[1] > 15 and self.name != "reference":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, ids, mask, positions)

    monkeypatch.setattr(Decoder, "states", small)
    monkeypatch.setattr("harness.lockstep.driver.VERIFIED_TOKENS", 8)
    with pytest.raises(ModelError, match="memory ran out on the single document d1 of 20 tokens"):
        observe(tmp_path, reference, [damaged(reference)], make_documents([9, 20]))


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, real = llama(), Decoder.states

    def failing(self: Decoder, ids: Any, mask: Any, positions: Any = None) -> Any:
        if len(ids) > 1 and self.name != "reference":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return real(self, ids, mask, positions)

    monkeypatch.setattr(Decoder, "states", failing)
    with pytest.raises(RuntimeError, match="mat1"):
        observe(tmp_path, reference, [damaged(reference)])


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    reference = llama()
    _, whole = observe(tmp_path, reference, [damaged(reference)])
    victim = sorted((tmp_path / "0" / "s").glob("*.layers.parquet"))[1]
    victim.write_bytes(victim.read_bytes()[:-7])
    _, again = observe(tmp_path, reference, [damaged(reference)])
    assert as_bytes(again[0]) == as_bytes(whole[0])


def test_a_finished_pass_runs_no_model(tmp_path: Path) -> None:
    reference = llama()
    first = observe(tmp_path, reference, [damaged(reference)])
    broken = copy.deepcopy(reference)
    broken.model.forward = None
    second = observe(tmp_path, broken, [broken])
    assert first[0] == second[0]
    assert as_bytes(first[1][0]) == as_bytes(second[1][0])


def test_other_batches_change_no_more_than_rounding_does(tmp_path: Path) -> None:
    reference = louder(llama(), 3.0)
    variant = damaged(reference)
    report, (one,) = observe(tmp_path / "one", reference, [variant], batch_tokens=1)
    _, (many,) = observe(tmp_path / "many", reference, [variant], batch_tokens=200)
    keys = ["document", "position"]
    left, right = (t["tokens"].sort_values(keys).reset_index(drop=True) for t in (one, many))
    pd.testing.assert_frame_equal(left, right, rtol=1e-4, atol=1e-6)
    keys = ["document", "depth"]
    left, right = (t["layers"].sort_values(keys).reset_index(drop=True) for t in (one, many))
    pd.testing.assert_frame_equal(left, right, rtol=1e-4, atol=1e-6)
    pd.testing.assert_frame_equal(one["channels"], many["channels"], rtol=1e-4, atol=1e-5)
    assert report.repeat is not None
    assert report.repeat.max_abs_diff == 0.0


def test_a_reference_that_does_not_repeat_itself_is_said(tmp_path: Path) -> None:
    reference, chance = llama(), torch.Generator().manual_seed(0)
    reference.model.norm.register_forward_hook(lambda _m, _i, y: y + 1e-3 * torch.randn(y.shape, generator=chance))
    report, _ = observe(tmp_path, reference, [damaged(reference)])
    assert report.repeat is not None
    assert report.repeat.max_abs_diff > 0
    assert any("is not deterministic" in note.text and note.level == "warn" for note in report.notes)


def test_padding_never_counts(tmp_path: Path) -> None:
    """Padded batches give what documents give one at a time, even when padding positions are made absurd."""
    reference = llama()
    variant = damaged(reference)
    _, (clean,) = observe(tmp_path / "clean", reference, [variant], batch_tokens=1)
    documents = make_documents()
    longest = max(len(d.ids) for d in documents)
    assert any(len(d.ids) < longest for d in documents)

    def absurd(_module: Any, _arguments: Any, named: dict[str, Any], output: Any) -> Any:
        mask = named.get("attention_mask")
        if mask is not None:
            output.last_hidden_state[mask == 0] = float("nan")
        return output

    for model in (reference, variant):
        model.model.register_forward_hook(absurd, with_kwargs=True)
    _, (padded,) = observe(tmp_path / "padded", reference, [variant], batch_tokens=200)
    keys = ["document", "position"]
    left, right = (t["tokens"].sort_values(keys).reset_index(drop=True) for t in (clean, padded))
    pd.testing.assert_frame_equal(left, right, rtol=1e-4, atol=1e-6)
    assert (padded["channels"]["tokens"] == sum(len(d.ids) for d in documents)).all()


def test_nan_in_one_layer_stays_where_it_is_and_what_follows(tmp_path: Path) -> None:
    reference = llama()
    variant = damaged(reference)
    with torch.no_grad():
        variant.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    _, (tables,) = observe(tmp_path, reference, [variant])
    layers = tables["layers"].groupby("module")["sum_squared_error"].agg(lambda c: bool(c.isna().all()))
    bad = set(layers[layers].index)
    assert bad == {
        "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp", "model.layers.1",
    }  # fmt: skip
    assert tables["layers"]["sum_squared_reference"].notna().all()
    tokens = tables["tokens"]
    assert tokens["variant_nll"].isna().all()
    assert tokens["kl"].isna().all()
    assert (tokens["variant_top1"] == -1).all()
    assert tokens["reference_nll"].notna().all()
    channels = tables["channels"]
    hidden = channels[channels["max_abs"].isna()]
    assert hidden[["side", "module", "channel"]].values.tolist() == [["variant", "model.layers.1.mlp.down_proj", 3]]
    assert hidden[["sum", "sum_squares", "sum_fourth"]].isna().all(axis=None)


def test_nan_in_one_document_stays_in_it(tmp_path: Path) -> None:
    reference = llama()
    variant = damaged(reference)
    documents = make_documents()
    rare = int(documents[6].ids[5])
    with torch.no_grad():
        variant.model.embed_tokens.weight[rare] = float("nan")
    _, (tables,) = observe(tmp_path, reference, [variant], documents)
    touched = {d.index for d in documents if rare in d.ids}
    assert 0 < len(touched) < len(documents)
    layers = tables["layers"]
    assert set(layers[layers["sum_squared_error"].isna()]["document"]) == touched


def test_hooks_and_trunks_are_gone_afterwards(tmp_path: Path) -> None:
    reference, variant = llama(), damaged(llama())
    observe(tmp_path / "a", reference, [variant])
    with pytest.raises(Stop):
        observe(tmp_path / "b", reference, [variant], progress=Stopping(1))
    for model in (reference, variant):
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert "forward" not in vars(module)


def test_only_what_is_asked_for_is_watched(tmp_path: Path) -> None:
    reference = llama()
    variant = damaged(reference)
    heads = []
    variant.lm_head.register_forward_hook(lambda *_: heads.append(1))
    _, (tables,) = observe(tmp_path / "l", reference, [variant], probes=(Layers(),))
    assert set(tables) == {"documents", "pass", "notes", "unpaired", "layers"}
    before = len(heads)
    observe(tmp_path / "t", reference, [variant], probes=(Tokens(),))
    assert len(heads) - before > before

    class Progress:
        def step(self, *_: Any) -> None:
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in reference.modules())

    observe(tmp_path / "u", reference, [damaged(reference)], probes=(Tokens(),), progress=Progress())


def test_modules_without_a_counterpart_are_said(tmp_path: Path) -> None:
    reference = llama(num_hidden_layers=3)
    narrow = llama(num_hidden_layers=3, intermediate_size=64)
    narrow.model.layers[2].mlp = torch.nn.Identity()
    variants = [narrow, damaged(reference)]
    report, (student, full) = observe(tmp_path, reference, variants)
    reasons = report.unpaired[0]
    assert "only the reference runs it" in reasons["model.layers.2.mlp.up_proj"]
    assert "48" in reasons["model.layers.0.mlp.up_proj"]
    assert "64" in reasons["model.layers.0.mlp.up_proj"]
    assert report.unpaired[1] == {}
    assert report.variant_notes[1] == ()
    assert "could not be compared" in report.variant_notes[0][0].text
    compared = set(student["layers"]["module"])
    assert compared.isdisjoint(reasons)
    assert compared | set(reasons) == set(full["layers"]["module"])
    assert set(student["channels"]["module"]).isdisjoint(reasons)


def without_layer(model: Any, gone: int) -> Any:
    """A copy of a model without one of its decoder layers."""
    pruned = copy.deepcopy(model)
    del pruned.model.layers[gone]
    pruned.config.num_hidden_layers -= 1
    for index, layer in enumerate(pruned.model.layers):
        layer.self_attn.layer_idx = index
    return pruned


def test_layers_of_a_pruned_model_are_paired_by_the_declared_map_alone(tmp_path: Path) -> None:
    reference = llama(num_hidden_layers=3)
    pruned = without_layer(reference, 1)
    report, (tables,) = observe(tmp_path / "numbers", reference, [pruned])
    assert set(report.unpaired[0]) >= {"model.layers.0", "model.layers.1.mlp.up_proj", "model.layers.2"}
    assert all("2 decoder layers, the reference 3" in reason for reason in report.unpaired[0].values())
    assert report.expected == (frozenset(),)
    assert "layers" not in tables

    report, (tables,) = observe(tmp_path / "map", reference, [pruned], layers=[(0, 2)])
    assert set(report.unpaired[0]) == report.expected[0]
    assert all(name.startswith("model.layers.1") for name in report.unpaired[0])
    errors = tables["layers"].groupby("module")["sum_squared_error"].sum()
    assert errors["model.layers.0"] == 0.0, "the layers before the one that is gone compute the same"
    assert errors["model.layers.2"] > 0.0
    channels = tables["channels"]
    assert set(channels["module"][channels["layer"] == 2]) == {
        name for name in channels["module"] if name.startswith("model.layers.2.")
    }


@pytest.mark.parametrize(("layers", "found"), [((0, 1, 2), "found 3 entries, expected 2"), ((0, 3), "found layer 3")])
def test_a_map_that_does_not_fit_the_models_is_refused(layers: tuple[int, ...], found: str, tmp_path: Path) -> None:
    reference = llama(num_hidden_layers=3)
    with pytest.raises(ModelError, match=f"variant.layers: {found}"):
        observe(tmp_path, reference, [without_layer(reference, 1)], layers=[layers])


class Sparse(torch.nn.Module):
    """Gives its inner module only some of the tokens, except when there are as few as in a survey."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        if len(flat) <= 31:
            whole: torch.Tensor = self.inner(flat)
            return whole.view_as(hidden)
        return torch.cat([self.inner(flat[:1]), torch.zeros_like(flat[1:])]).view_as(hidden)


@pytest.mark.parametrize("probe", [Layers(), Channels()])
def test_a_module_that_sees_only_some_tokens_is_not_broadcast(tmp_path: Path, probe: Any) -> None:
    reference = llama()
    reference.model.layers[0].mlp = Sparse(reference.model.layers[0].mlp)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.inner\.\S+: found 1 rows in a batch, expected 46"):
        observe(tmp_path, reference, [damaged(reference)], probes=(probe,))


def test_a_vocabulary_of_one_is_not_broadcast(tmp_path: Path) -> None:
    for size in (1, VOCABULARY - 1):
        other = llama()
        other.lm_head = torch.nn.Linear(32, size, bias=False)
        with pytest.raises(ModelError, match=rf"has {size} logits per token, the reference {VOCABULARY}, and they"):
            observe(tmp_path / str(size), llama(), [other])


def test_logits_of_another_dtype_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bfloat16.*float32.*set reference\.dtype and variant\.dtype alike"):
        observe(tmp_path, llama(), [llama().to(torch.bfloat16)])


def test_half_precision_runs_and_says_what_it_cannot_see(tmp_path: Path) -> None:
    reference = llama().to(torch.bfloat16)
    report, (tables,) = observe(tmp_path, reference, [damaged(reference)])
    assert any(note.topic == "precision" for note in report.notes)
    assert tables["tokens"]["kl"].notna().all()
    assert not any(note.topic == "precision" for note in observe(tmp_path / "f", llama(), [llama()])[0].notes)


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    documents = make_documents([5])
    documents[0].ids[2] = VOCABULARY
    with pytest.raises(ModelError, match=f"d0 has token ids up to {VOCABULARY}"):
        observe(tmp_path, llama(), [llama()], documents)


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    for documents in ([], make_documents([1, 0])):
        with pytest.raises(DataError, match="has a token to score"):
            observe(tmp_path, llama(), [llama()], documents)


def test_the_documents_table_has_every_document(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, llama(), [llama()], make_documents([5, 3]), probes=(Channels(),))
    frame = tables["documents"]
    columns = ["document", "id", "kind", "tokens", "total_tokens", "cut", "skipped", "language", "cluster"]
    assert list(frame.columns) == columns
    assert frame.values.tolist() == [
        [0, "d0", "test", 4, 5, False, "", "", 0],
        [1, "d1", "test", 2, 3, False, "", "", 1],
    ]


def test_logits_of_one_chunk_of_two_sides_are_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, made, most = Decoder.logits, list[weakref.ref[Tensor]](), 0

    def logits(decoder: Decoder, states: Tensor) -> Tensor:
        nonlocal most
        found = plain(decoder, states)
        made.append(weakref.ref(found))
        if len(states) == 16:  # Not those of the first look at the models.
            most = max(most, sum(each() is not None for each in made))
        return found

    monkeypatch.setattr(Decoder, "logits", logits)
    monkeypatch.setattr("harness.lockstep.driver.CHUNK_VALUES", 1)
    reference = llama()
    observe(tmp_path, reference, [damaged(reference), damaged(reference)], kernel="eager")
    assert most == 2


def test_outputs_of_the_reference_leave_memory_as_the_last_variant_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: dict[int, weakref.ref[Tensor]] = {}
    left: list[int] = []

    def errors(reference: Tensor, variant: Tensor) -> tuple[Tensor, ...]:
        left.append(sum(each() is not None for each in compared.values()))
        compared[len(compared)] = weakref.ref(reference)
        return row_errors(reference, variant)

    monkeypatch.setattr(kernels, "EAGER", replace(EAGER, errors=errors))
    reference = llama()
    observe(tmp_path, reference, [damaged(reference)], kernel="eager", probes=[Layers()])
    assert len(left) > 10
    assert max(left) <= 1

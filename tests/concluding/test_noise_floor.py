"""The reference under other conditions: what a probe sees of it is what it would see of the batch, up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.concluding.noise_floor import add_floors, floors, read_perturbed
from harness.errors import ModelError
from harness.lockstep import driver
from harness.lockstep.arrangement import SPARE_PADDING, one_by_one, pad_left, plan_moves, reorder
from harness.lockstep.batches import Batch
from harness.lockstep.decoder import Decoder
from harness.lockstep.noise_floor import apply_condition, perturb_weights, sample_documents, switch_attention
from harness.measures.divergence import Divergence
from harness.measures.layer_error import LayerError
from harness.measures.logits import Logits
from harness.measures.outliers import Outliers
from harness.measures.perplexity import Perplexity
from harness.models.language_model import TransformersModel
from harness.planning.specs import SuiteSpec
from harness.probes.channels import Channels
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.records import Measurement, NoiseFloor, NoiseFloorSpec
from harness.records.plan import Condition
from harness.running import perturbing
from harness.running.perturbing import observe_perturbed
from harness.tables.memory import MemoryStore, MemoryTables
from tests.helpers.pass_pairs import Loaded, Silent, damaged, gpt2, llama, louder, make_documents, observe

ALL: tuple[Condition, ...] = ("batch_size", "padding_side", "document_order", "attention", "rounding")
CPU = torch.device("cpu")
lists = st.lists(st.integers(2, 12), min_size=1, max_size=6)


@given(lengths=lists)
def test_the_parts_of_a_batch_hold_every_token_once(lengths: list[int]) -> None:
    batch = Batch(0, tuple(make_documents(lengths)))
    for arrange in (one_by_one, pad_left, reorder):
        home = torch.full((len(lengths) * batch.width,), -1)
        for move in plan_moves(batch, arrange(batch)):
            ids, is_token = move.part.token_ids(CPU).flatten(), move.part.is_token(CPU).flatten()
            assert is_token[move.source].all()
            assert (home[move.target] == -1).all()
            home[move.target] = ids[move.source]
        kept = batch.is_token(CPU).flatten()
        assert torch.equal(home[kept], batch.token_ids(CPU).flatten()[kept])
        assert (home[~kept] == -1).all()


def test_each_condition_changes_what_it_says() -> None:
    batch = Batch(3, tuple(make_documents([9, 5, 5])))
    assert [part.lengths for part in one_by_one(batch)] == [(9,), (5,), (5,)]
    (single,) = one_by_one(Batch(3, batch.documents[:1]))
    assert single.lengths == (9, 9), "a document that is alone runs beside a copy of itself"
    (left,) = pad_left(batch)
    assert left.starts == (SPARE_PADDING, SPARE_PADDING + 4, SPARE_PADDING + 4)
    assert left.has_padding
    assert left.positions(CPU)[1].tolist() == [0] * (SPARE_PADDING + 4) + [0, 1, 2, 3, 4]
    places, targets = left.index_scored(CPU)
    ids = left.token_ids(CPU).flatten()
    assert torch.equal(ids[places + 1], targets)
    assert [[document.index for document in part.documents] for part in reorder(batch)] == [[2, 0], [1]]
    assert len(reorder(Batch(3, batch.documents[:1]))) == 1


def test_parts_of_other_documents_are_refused() -> None:
    documents = make_documents([5, 5, 5])
    batch = Batch(0, tuple(documents[:2]))
    for parts in ([Batch(0, tuple(documents))], [Batch(0, tuple(documents[:1]))]):
        with pytest.raises(ValueError, match="its parts differ in documents"):
            plan_moves(batch, parts)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=40), count=st.integers(1, 20))
def test_the_sample_has_documents_of_all_lengths_in_their_order(lengths: list[int], count: int) -> None:
    documents = make_documents(lengths)
    scored = [each for each in documents if each.tokens > 0]
    chosen = sample_documents(documents, count)
    assert len(chosen) == min(count, len(scored))
    assert [each.index for each in chosen] == sorted({each.index for each in chosen})
    assert all(each.tokens > 0 for each in chosen)
    if count >= 2 and len(scored) >= 4 * count:
        middle = np.median([len(each.ids) for each in scored])
        assert min(len(each.ids) for each in chosen) <= middle <= max(len(each.ids) for each in chosen)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("arrange", [one_by_one, pad_left, reorder])
def test_a_variant_that_runs_otherwise_leaves_the_same_tables(tmp_path: Path, make: Any, arrange: Any) -> None:
    """Of a damaged variant, so that a row in another place would be seen."""
    reference = louder(make(), 3.0)
    variant = damaged(reference)
    read: list[list[list[int]]] = []
    variant.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].tolist()))
    _, (plain,) = observe(tmp_path / "plain", reference, [variant])
    read_plain = [*read]
    read.clear()
    _, (other,) = observe(tmp_path / "other", reference, [variant], arranged=[arrange])
    for table in ("tokens", "layers", "channels"):
        pd.testing.assert_frame_equal(plain[table], other[table], rtol=2e-4, atol=1e-5)
    # Whether other batches also round otherwise depends on the processor; that they are other batches does not.
    assert read != read_plain, "the variant read the same batches"


def test_padding_on_the_left_without_positions_would_be_seen() -> None:
    model = louder(gpt2(), 3.0)
    decoder = Decoder("m", TransformersModel(model))
    batch = Batch(0, tuple(make_documents([20, 9])))
    left = Batch(0, batch.documents, left=SPARE_PADDING)
    with torch.inference_mode():
        decoder.prepare(torch.from_numpy(batch.documents[0].ids)[None])
        right_N, left_N = decoder.scored_states(batch), decoder.scored_states(left)
        mask = left.is_token(CPU).long()
        wrong_N = decoder.states(left.token_ids(CPU), mask)[left.index_scored(CPU)[0]]
    assert torch.allclose(right_N, left_N, atol=1e-4)
    assert not torch.allclose(right_N, wrong_N, atol=1e-2)


def test_a_module_that_runs_twice_is_seen_twice(tmp_path: Path) -> None:
    def shared() -> Any:
        model = llama()
        model.model.layers[1] = model.model.layers[0]
        return model.eval()

    reference = shared()
    _, (plain,) = observe(tmp_path / "plain", reference, [damaged(reference)], probes=(Layers(),))
    _, (other,) = observe(
        tmp_path / "other", reference, [damaged(reference)], probes=(Layers(),), arranged=[one_by_one]
    )
    pd.testing.assert_frame_equal(plain["layers"], other["layers"], rtol=2e-4, atol=1e-5)


def test_a_model_that_mixes_the_documents_of_a_batch_has_a_large_floor(tmp_path: Path) -> None:
    reference = llama()
    reference.model.norm.register_forward_hook(lambda _m, _i, y: y + 0.1 * y.mean(0, keepdim=True))
    _, (tables,) = observe(tmp_path, reference, [reference], make_documents([20, 20]), arranged=[one_by_one])
    assert tables["tokens"]["kl"].mean() > 1e-5


def test_other_attention_shares_the_weights_and_leaves_the_reference_alone() -> None:
    reference = llama(attn_implementation="sdpa")
    other = switch_attention(reference)
    assert (reference.config._attn_implementation, other.config._attn_implementation) == ("sdpa", "eager")
    assert other.model.layers[0].self_attn.config is other.config
    assert all(a is b for a, b in zip(reference.parameters(), other.parameters(), strict=True))
    assert switch_attention(other).config._attn_implementation == "sdpa"
    assert other.model.layers[0] is not reference.model.layers[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_rounded_to_a_neighbour(dtype: torch.dtype) -> None:
    model = llama(tie_word_embeddings=True).to(dtype)
    with torch.no_grad():
        model.model.norm.weight[:3] = torch.tensor([0.0, torch.finfo(dtype).max, -1.5]).to(dtype)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    other = perturb_weights(model)
    assert other.lm_head.weight is other.model.embed_tokens.weight, "tied weights stay tied"
    up = down = 0
    for name, weight in other.named_parameters():
        old, new = before[name].double(), weight.double()
        assert torch.equal(model.get_parameter(name), before[name]), "the reference is as it was"
        step = (torch.finfo(dtype).eps * old.abs()).clamp(min=torch.finfo(dtype).smallest_normal / 2**10)
        assert ((new - old).abs() <= step).all()
        assert ((new != old) == ((old != 0) & (old.abs() != torch.finfo(dtype).max))).sum() >= len(old.flatten()) - 1
        assert weight.isfinite().all()
        up, down = up + int((new > old).sum()), down + int((new < old).sum())
    assert 0.9 < up / down < 1.1
    again = perturb_weights(model)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), again.parameters(), strict=True))


def suite(*conditions: Condition, documents: int = 6) -> SuiteSpec:
    return SuiteSpec(
        name="s",
        source="s.yaml",
        measures=MEASURES,
        probes=(Channels(), Layers(), Tokens()),
        noise_floor=NoiseFloorSpec(conditions=conditions, documents=documents),
    )


MEASURES = (Divergence(), Perplexity(), Logits(), LayerError(), Outliers())


def perturbed(model: Any, *conditions: Condition, documents: int = 6) -> Any:
    loaded: Any = Loaded("r", model)
    asked, store = suite(*conditions, documents=documents), MemoryStore(Path())
    observe_perturbed(asked, make_documents(), loaded, [store.sink(asked.name)], Silent())
    return read_perturbed(store, asked.name)


def test_every_metric_of_a_pass_probe_gets_a_floor_with_the_worst_condition() -> None:
    model = louder(llama(attn_implementation="sdpa"), 3.0)
    together = perturbed(model, *ALL)
    assert together.documents == 6
    assert set(together.tables) == set(ALL)
    assert "takes 36 document passes, in addition to the 16" in together.note.text
    found = floors(together, MEASURES)
    names = {name for name, _ in found}
    produced = {metric.name for measure in MEASURES for metric in measure.produces()}
    assert produced - names == {"layers.sqnr_db"}, "decibels have no finite value for equal sides"
    for condition in ALL:
        alone = floors(perturbed(model, condition), MEASURES)
        assert alone.keys() == found.keys()
        assert all(found[key].value >= alone[key].value for key in found)
        assert all(alone[key].value == found[key].value for key in found if found[key].condition == condition)
    kl = found["divergence.kl_mean", ()]
    assert 0 < kl.value < 1e-7
    assert found["divergence.top1_agreement", ()].value == 0.0
    assert 0 < found["logits.max_abs_diff", ()].value < 1e-3


def test_the_floor_is_the_distance_from_neutral_of_the_same_measure() -> None:
    found = perturbed(louder(llama(), 3.0), "rounding")
    measured = Perplexity().measure(found.tables["rounding"].read("tokens"))
    (ratio,) = [entry for entry in measured if isinstance(entry, Measurement) and entry.name == "perplexity.ratio"]
    assert ratio.change is not None
    assert floors(found, MEASURES)["perplexity.ratio", ()].value == abs(ratio.change - 1.0)


def test_floors_are_given_by_metric_and_module() -> None:
    def one(name: str, **labels: str) -> Measurement:
        return Measurement(
            name=name,
            labels=labels,
            unit="ratio",
            better="lower",
            change=0.5,
            n=1,
            clusters=1,
            basis="sampled",
            method="m",
        )

    floor = NoiseFloor(value=0.1, condition="rounding", documents=3)
    known = {("layers.relative_error", (("module", "a"),)): floor, ("layers.worst", ()): floor}
    found = [one("layers.relative_error", module="a"), one("layers.relative_error", module="b")]
    found += [one("layers.worst", module="b"), one("tasks.a.accuracy")]
    marked = add_floors(found, known)
    assert [m.floor for m in marked if isinstance(m, Measurement)] == [floor, None, floor, None]
    own = one("layers.worst").model_copy(update={"floor": floor.model_copy(update={"value": 9.0})})
    assert add_floors([own], known) == [own], "a floor that a measure found itself stays"


def test_what_one_condition_leaves_without_a_number_has_no_floor() -> None:
    found = perturbed(llama(), "batch_size", "rounding")
    tokens = found.tables["rounding"].tables.sink("s").units["noise_floor"]["tokens@rounding"]
    tokens.loc[0, "variant_nll"] = float("nan")
    names = {name for name, _ in floors(found, MEASURES)}
    assert not any(name.startswith(("perplexity", "divergence", "logits")) for name in names)
    assert any(name.startswith("layers") for name in names)


class Fixed(type(llama())):  # type: ignore[misc]
    """A model whose attention cannot be changed."""

    def set_attn_implementation(self, implementation: Any) -> None:
        raise ValueError("only this one")


def test_a_condition_that_cannot_be_had_leaves_no_floor_and_says_so() -> None:
    model = Fixed(llama().config).eval()
    found = perturbed(model, "batch_size", "attention")
    assert floors(found, MEASURES) == {}
    assert found.note.level == "warn"
    assert "only this one" in found.note.text
    assert "remove attention from the suite's noise_floor" in found.note.text
    with pytest.raises(ModelError, match="the noise floor attention is not available"):
        apply_condition("attention", Loaded("r", model))  # type: ignore[arg-type]


def test_memory_that_runs_out_leaves_no_floor_and_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_model: Any) -> Any:
        raise error

    monkeypatch.setattr(Decoder, "scored_states", lambda *_: failing(None))
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")
    found = perturbed(llama(), "batch_size")
    assert (found.tables, found.note.level) == ({}, "warn")
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        perturbed(llama(), "batch_size")


def test_a_model_without_position_ids_cannot_be_padded_on_the_left() -> None:
    class Plain(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
            raise AssertionError("never called")

    decoder = Decoder("m", TransformersModel(Plain()))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="remove padding_side"):
        decoder.states(torch.zeros(1, 3, dtype=torch.int64), None, torch.zeros(1, 3, dtype=torch.int64))


def test_sums_of_a_condition_are_not_kept_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[MemoryTables] = []

    def make(**given: Any) -> MemoryTables:
        kept.append(MemoryTables(**given))
        return kept[-1]

    monkeypatch.setattr(perturbing, "MemoryTables", make)
    monkeypatch.setattr(driver, "CPU_TOKENS", 16)
    perturbed(llama(), "batch_size", "document_order")
    for tables in kept:
        assert len([unit for unit in tables.units if "tokens" in tables.units[unit]]) > 2
        assert not [unit for unit in tables.units if "channels" in tables.units[unit]]
        assert len(list(tables.read_parts("channels"))) == 1

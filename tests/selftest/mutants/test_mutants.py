"""The library of known-bad and harmless variants: each mutant changes what the model says, no harmless one does."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import ModelError
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.modules.linears import linears, weight_of
from harness.numerics.formats import quantize
from harness.pocket import MODEL_DIR
from harness.pocket.world import documents
from harness.records import ModelSpec
from harness.selftest.mutants import NotApplicable, Variation, library
from harness.selftest.mutants._codes import GROUP, INT4, INT8, Codes, misread, round_model
from harness.selftest.mutants._parts import heads
from tests.helpers.tiny_models import VOCABULARY, tiny_llama

EVERY = list(library().values())
IN_MEMORY = [each for each in EVERY if each.in_memory]
UNREAD = "unread_row_not_finite"
"""Changes what no document reads, and so no logit."""
ROUNDING = 1e-3
"""In units of logits, which lie between about -30 and 30: what another order of sums in float32 may change."""


@pytest.fixture(scope="module")
def pocket() -> LoadedModel:
    return load(ModelSpec(model="pocket"), "pocket")


@pytest.fixture(scope="module")
def ids(pocket: LoadedModel) -> Tensor:
    text = documents("heldout", 1, 0)[0].text
    return torch.tensor([pocket.tokenizer(text)["input_ids"][:96]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL_DIR, tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json")))


def logits_of(variation: Variation, pocket: LoadedModel, ids: Tensor) -> Tensor:
    assert variation.in_memory is not None
    done = variation.in_memory(copy.deepcopy(pocket.model))
    with torch.inference_mode():
        found: Tensor = done.model(ids).logits
    return found


def own_logits(pocket: LoadedModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = pocket.model(ids).logits
    return found


@pytest.mark.parametrize("variation", EVERY, ids=lambda each: each.name)
def test_every_variation_says_what_it_stands_for_and_of_what_it_is_made(variation: Variation) -> None:
    assert 20 <= len(variation.summary) <= 120
    assert variation.summary.endswith(".")
    assert (variation.in_memory is None) != (variation.on_disk is None)
    if variation.control:
        assert variation.kind == "mutant"
        assert library()[variation.control].kind == "control"


@pytest.mark.parametrize(
    "variation",
    [v for v in IN_MEMORY if v.kind == "mutant" and v.name not in ("expert_zeroed", UNREAD)],
    ids=lambda v: v.name,
)
def test_a_mutant_changes_the_logits_of_the_good_variant_it_is_made_of(
    variation: Variation, pocket: LoadedModel, ids: Tensor
) -> None:
    good = logits_of(library()[variation.control], pocket, ids) if variation.control else own_logits(pocket, ids)
    apart = (logits_of(variation, pocket, ids) - good).abs().max()
    assert not apart < 0.3  # NaN is a change too


@pytest.mark.parametrize("variation", [v for v in IN_MEMORY if v.kind == "benign"], ids=lambda v: v.name)
def test_a_harmless_change_changes_weights_and_nothing_beyond_rounding(
    variation: Variation, pocket: LoadedModel, ids: Tensor
) -> None:
    assert (logits_of(variation, pocket, ids) - own_logits(pocket, ids)).abs().max() < ROUNDING
    assert variation.in_memory is not None
    changed = variation.in_memory(copy.deepcopy(pocket.model)).model
    pairs = zip(changed.parameters(), pocket.model.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    # The embedded model is stored in bfloat16, so that this round trip gives the same bytes.
    assert same == (variation.name == "bfloat16_round_trip")


def test_a_row_that_is_not_finite_shows_where_its_token_is_read_and_nowhere_else(
    pocket: LoadedModel, ids: Tensor
) -> None:
    assert torch.equal(logits_of(library()[UNREAD], pocket, ids), own_logits(pocket, ids))
    end = torch.tensor([[pocket.model.config.eos_token_id]])
    assert bool(logits_of(library()[UNREAD], pocket, torch.cat([ids, end], dim=1))[0, -1].isnan().all())


def test_the_reference_is_left_alone(pocket: LoadedModel, ids: Tensor) -> None:
    before = own_logits(pocket, ids)
    for variation in IN_MEMORY:
        if variation.name != "expert_zeroed":
            logits_of(variation, pocket, ids)
    assert torch.equal(own_logits(pocket, ids), before)


def test_an_expert_is_zeroed_where_there_are_experts_and_left_out_where_not(pocket: LoadedModel) -> None:
    make = library()["expert_zeroed"].in_memory
    assert make is not None
    with pytest.raises(NotApplicable, match="not a mixture of experts"):
        make(copy.deepcopy(pocket.model))
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        before = model(ids).logits
        after = make(model).model(ids).logits
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("step", [INT4, INT8], ids=["int4", "int8"])
def test_codes_that_are_read_rightly_are_what_round_to_nearest_gives(step: RoundToNearest) -> None:
    weight_OI = torch.randn(6, 80, generator=torch.Generator().manual_seed(1))
    form = step.weight_format()
    assert torch.allclose(misread(lambda codes: codes)(weight_OI, form), quantize(weight_OI, form).values, atol=1e-7)
    codes = Codes.of(quantize(weight_OI, form), form)
    assert codes.code.min() >= 0
    assert codes.code.max() <= 2 ** (step.bits or 0) - 1


def by_hand(row: list[float], bits: int) -> Iterator[tuple[int, list[int], float, int]]:
    """Group number, codes, scale and zero point of each group of a row: the definition, one number at a time."""
    for start in range(0, len(row), GROUP):
        group = row[start : start + GROUP]
        low, high = min(0.0, *group), max(0.0, *group)
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        yield start // GROUP, [min(max(round(x / scale) + zero, 0), 2**bits - 1) for x in group], scale, zero


def read_by_hand(name: str, weight_OI: Tensor) -> Tensor:
    """The first layer of the middle block under a fault of packing, from plain loops."""
    rows = []
    for row in weight_OI.double().tolist():
        bits = 8 if name == "group_scales_swapped" else 4
        groups = list(by_hand(row, bits))
        values = []
        for number, codes, scale, zero in groups:
            for place, code in enumerate(codes):
                if name == "group_scales_swapped":
                    values.append((code - zero) * groups[number ^ 1][2])
                elif name == "zero_points_off_by_one":
                    values.append((code - (zero - 1)) * scale)
                else:
                    values.append((codes[place ^ 1] - zero) * scale)
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("name", ["group_scales_swapped", "zero_points_off_by_one", "nibbles_swapped"])
def test_faults_of_packing_are_what_they_say(name: str) -> None:
    model = tiny_llama()
    layer = "model.layers.1.self_attn.q_proj"
    weight_OI = weight_of(dict(linears(model))[layer]).clone()
    make = library()[name].in_memory
    assert make is not None
    found = weight_of(dict(linears(make(model).model))[layer])
    step = weight_OI.abs().max() / 127
    wanted = read_by_hand(name, weight_OI)
    # A weight halfway between two codes may go to either in float32 and in float64.
    assert ((found - wanted).abs() > 1e-6).float().mean() < 0.01
    assert (found - wanted).abs().max() < 20 * step


def test_activation_order_that_is_lost_reads_each_column_with_the_scale_of_its_neighbours() -> None:
    """Columns that are in order already have their own scales; others do not."""
    make = library()["act_order_lost"].in_memory
    assert make is not None
    name = "model.layers.1.self_attn.q_proj"
    for ordered in (True, False):
        model = tiny_llama()
        layer = dict(linears(model))[name]
        size = torch.linspace(4, 1, layer.weight.shape[1])
        weight_OI = torch.randn_like(layer.weight) * 0.01 + (size if ordered else size.flip(0))
        layer.weight.data.copy_(weight_OI)
        good = weight_of(dict(linears(round_model(copy.deepcopy(model), INT4).model))[name])
        found = weight_of(dict(linears(make(model).model))[name])
        assert torch.allclose(found, good) == ordered


@pytest.mark.parametrize("strong", range(4))
def test_the_head_that_is_zeroed_is_the_one_that_adds_most(strong: int) -> None:
    model = tiny_llama()
    query, kv, size = heads(model)
    assert (query, kv) == (4, 2)
    layer = dict(linears(model))
    value, out = (layer[f"model.layers.1.self_attn.{role}"].weight.data for role in ("v_proj", "o_proj"))
    # Columns that are large and read small values are no strong head: what counts is the product of both.
    weak = 3 - strong
    out[:, weak * size : (weak + 1) * size] *= 10
    value.view(kv, size, -1)[weak * kv // query] /= 1000
    out[:, strong * size : (strong + 1) * size] *= 5
    before = out.clone()
    make = library()["attention_head_zeroed"].in_memory
    assert make is not None
    after = weight_of(dict(linears(make(model).model))["model.layers.1.self_attn.o_proj"])
    zeroed = [head for head in range(query) if not after[:, head * size : (head + 1) * size].any()]
    assert zeroed == [strong]
    assert torch.equal(after, before.index_fill(1, torch.arange(strong * size, (strong + 1) * size), 0))


def test_the_zero_point_that_is_off_is_one_of_one_layer() -> None:
    good, bad = library()["int8_tensors"].in_memory, library()["one_zero_point_off_by_one"].in_memory
    assert good is not None
    assert bad is not None
    rounded, found = dict(linears(good(tiny_llama()).model)), dict(linears(bad(tiny_llama()).model))
    apart = {name: (weight_of(found[name]) - weight_of(rounded[name])) for name in rounded}
    changed = [name for name, each in apart.items() if each.any()]
    assert changed == ["model.layers.0.self_attn.k_proj"]
    steps = weight_of(rounded[changed[0]]).unique().diff()
    assert torch.allclose(apart[changed[0]], steps.min().expand_as(apart[changed[0]]), rtol=1e-3)


def test_smoothing_that_is_half_folded_cancels_in_queries_keys_and_gates_only() -> None:
    model, plain = tiny_llama(), tiny_llama()
    for block in (*model.model.layers, *plain.model.layers):
        torch.manual_seed(7)
        block.input_layernorm.weight.data.uniform_(0.5, 8)
        block.post_attention_layernorm.weight.data.uniform_(0.5, 8)
    make = library()["smoothing_half_folded"].in_memory
    assert make is not None
    for block, old in zip(make(model).model.model.layers, plain.model.layers, strict=True):
        for part, norm, roles in (
            ("self_attn", "input_layernorm", ("q_proj", "k_proj", "v_proj")),
            ("mlp", "post_attention_layernorm", ("gate_proj", "up_proj")),
        ):
            gain, before = getattr(block, norm).weight, getattr(old, norm).weight
            for role in roles:
                new_OI = getattr(getattr(block, part), role).weight * gain
                old_OI = getattr(getattr(old, part), role).weight * before
                assert torch.allclose(new_OI, old_OI, rtol=1e-5) == (role not in ("v_proj", "up_proj"))
            first = getattr(getattr(old, part), roles[0]).weight
            other = first if part == "mlp" else torch.cat([first, old.self_attn.k_proj.weight])
            assert torch.allclose(gain, (before * other.abs().amax(0)).sqrt(), rtol=1e-5)


def encoder(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def change(name: str, folder: Path) -> None:
    make = library()[name].on_disk
    assert make is not None
    make(folder)


def test_faults_of_tokenizers_are_what_they_say(folder: Path) -> None:
    text = "Story: Nora has a dog."
    right = encoder(folder).encode(text).ids
    for name in ("bos_dropped", "token_ids_off_by_one", "prefix_space_added", "wrong_chat_template"):
        other = Path(shutil.copytree(folder, folder.parent / name))
        change(name, other)
        found = encoder(other).encode(text).ids
        wanted = {
            "bos_dropped": right[1:],
            "token_ids_off_by_one": [right[0], *(number + 1 for number in right[1:])],
            "prefix_space_added": encoder(folder).encode(f" {text}").ids,
            "wrong_chat_template": right,
        }
        assert found == wanted[name], name


def test_a_fault_of_the_chat_template_changes_no_token_of_a_text(folder: Path) -> None:
    assert not [each.name for each in EVERY if each.equivalent]
    change("wrong_chat_template", folder)
    tokenizer = load(ModelSpec(model=str(folder)), "template").tokenizer
    assert "[INST]" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


def test_one_block_of_a_packed_folder_is_left_plain(folder: Path) -> None:
    before = load(ModelSpec(model=str(folder)), "before")
    change("block_left_unquantized", folder)
    after = load(ModelSpec(model=str(folder)), "after")
    blocks = {m.module.split(".")[2] for m in after.identity.modules if m.role == "linear" and not m.backend}
    assert blocks == {"2"}
    assert sum(bool(m.backend) for m in after.identity.modules) == 21
    assert sum(m.stored_bytes for m in after.identity.modules) < sum(m.stored_bytes for m in before.identity.modules)


def test_bits_that_a_config_misstates_are_refused_at_loading(folder: Path) -> None:
    change("bits_misstated", folder)
    with pytest.raises(ModelError, match=r"config\.json says bits: 8, but its codes in the file have 4"):
        load(ModelSpec(model=str(folder)), "misstated")


@pytest.mark.parametrize(
    ("name", "file", "key", "value"),
    [
        ("stop_token_lost", "generation_config.json", "eos_token_id", None),
        ("sampling_changed", "generation_config.json", "repetition_penalty", 1.8),
        ("context_shortened", "config.json", "max_position_embeddings", 256),
    ],
)
def test_faults_beside_the_weights_are_what_they_say(
    folder: Path, name: str, file: str, key: str, value: object
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    change(name, folder)
    assert json.loads((folder / file).read_text()).get(key) == value
    assert {path.name for path in folder.iterdir() if path.read_bytes() != before[path.name]} == {file}


def test_one_of_several_stop_tokens_is_lost(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 15]}')
    change("stop_token_lost", folder)
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [1]}


def test_shards_hold_the_same_tensors_in_other_files(folder: Path) -> None:
    before = load_file(MODEL_DIR / "model.safetensors")
    change("shards_saved_again", folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    after = {name: load_file(folder / file)[name] for name, file in index["weight_map"].items()}
    assert len(set(index["weight_map"].values())) == 3
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

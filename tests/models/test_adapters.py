"""Adapters: merged or beside the weights the same function, every tensor at its place, modules under their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import ModelError
from harness.lockstep.decoder import Decoder
from harness.lockstep.survey import survey
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.modules.layer_pairs import SAME_NAMES
from harness.planning.specs import VariantSpec
from harness.records import ModelSpec
from harness.running.variant import make_variant
from tests.helpers.peft_adapters import PROJECTIONS, save_lora
from tests.helpers.tiny_models import save, tiny_llama
from tests.models.test_loading import plan_of

peft: Any = pytest.importorskip("peft")

IDS = torch.tensor([[0, 5, 9, 2, 40, 33, 7, 90]])


@pytest.fixture
def reference(tmp_path: Path) -> LoadedModel:
    return load(ModelSpec(model=str(save(tiny_llama(), tmp_path / "model"))), "reference")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_lora(tiny_llama(), tmp_path / "adapter")


def variant_of(reference: LoadedModel, adapter: Path, **fields: Any) -> LoadedModel:
    plan = plan_of(Path(reference.identity.source), VariantSpec(adapter=str(adapter), **fields))
    return make_variant(plan, reference, ())


def logits(loaded: LoadedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = loaded.model(IDS).logits
    return found


def change(adapter: Path, do: Callable[[dict[str, Tensor]], object]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    do(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(adapter: Path, **fields: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- tied weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [["lm_head"], ["embed_tokens"], ["lm_head", "q_proj"]])
def test_merged_into_one_of_two_tied_modules_it_computes_what_it_computes_beside(
    target: list[str], reference: LoadedModel, tmp_path: Path
) -> None:
    adapter = save_lora(tiny_llama(), tmp_path / "tied", target_modules=target, std=0.5)
    first = "base_model.model.model.embed_tokens.lora_embedding_A"  # peft begins with zeros
    change(adapter, lambda held: held.update({first: torch.ones_like(held[first])} if first in held else {}))
    merged, beside = (variant_of(reference, adapter, merge=merge) for merge in (True, False))
    assert torch.allclose(logits(merged), logits(beside), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(reference), atol=1e-2)
    assert "has a weight of its own now" in merged.notes[-1].text
    merged.model.save_pretrained(tmp_path / "saved")
    again: Any = type(merged.model).from_pretrained(tmp_path / "saved").eval()
    assert torch.allclose(again(IDS).logits, logits(merged), atol=1e-5)


@pytest.mark.parametrize("embeddings", ["auto", True], ids=["as_is", "with_embeddings"])
@pytest.mark.parametrize("config", [
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["lm_head"]},
    {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
], ids=lambda config: "-".join(map(str, config.values())))  # fmt: skip
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embeddings_and_heads_as_peft_saves_them_give_the_logits_of_peft(
    tied: bool, config: dict[str, Any], embeddings: Any, tmp_path: Path
) -> None:
    base = save(tiny_llama(tied=tied), tmp_path / "base")
    adapter = save_lora(tiny_llama(tied=tied), tmp_path / "a", everywhere=True, embeddings=embeddings, **config)
    loader: Any = AutoModelForCausalLM
    expected = peft.PeftModel.from_pretrained(loader.from_pretrained(base), str(adapter)).eval()(IDS).logits
    before = load(ModelSpec.model_validate({"model": str(base), "dtype": "float32"}), "base")
    assert not torch.allclose(logits(before), expected, atol=1e-2)
    assert torch.allclose(logits(variant_of(before, adapter)), expected, atol=1e-4)
    merged = variant_of(before, adapter, merge=True)
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    merged.model.save_pretrained(tmp_path / "saved")
    again: Any = type(merged.model).from_pretrained(tmp_path / "saved").eval()
    assert torch.allclose(again(IDS).logits, expected, atol=1e-4)


def test_a_tied_model_whose_tied_modules_have_no_adapter_stays_tied(reference: LoadedModel, adapter: Path) -> None:
    merged: Any = variant_of(reference, adapter, merge=True).model
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


# --- what an adapter computes -------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_adds_its_product_to_the_weights(merge: bool, reference: LoadedModel, adapter: Path) -> None:
    variant, stored = variant_of(reference, adapter, merge=merge), load_file(adapter / "adapter_model.safetensors")
    expected = tiny_llama()
    for name, module in expected.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS:
            prefix = f"base_model.model.{name}.lora_"
            module.weight.data += 8 / 4 * stored[f"{prefix}B.weight"] @ stored[f"{prefix}A.weight"]
    with torch.no_grad():
        wanted = expected(IDS).logits
    assert torch.allclose(logits(variant), wanted, atol=1e-5)
    assert (wanted - logits(reference)).abs().max() > 0.01


def test_the_reference_stays_as_it_was(reference: LoadedModel, adapter: Path) -> None:
    before = {name: each.clone() for name, each in reference.model.named_parameters()}
    for merge in (True, False):
        variant_of(reference, adapter, merge=merge)
    after = dict(reference.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_beside_the_weights_modules_keep_their_names_and_all_are_paired(reference: LoadedModel, adapter: Path) -> None:
    variant = variant_of(reference, adapter)
    sides = [Decoder(side.name, side.language_model) for side in (reference, variant)]
    with torch.inference_mode():
        for side in sides:
            side.prepare(IDS)
        layout = survey(sides[0], sides[1:], IDS, 96, [SAME_NAMES])
    assert layout.unpaired == ({},)
    watched = {site.module for site in layout.outputs}
    assert watched >= {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"}
    assert type(variant.model) is type(reference.model)


def test_formats_list_the_adapter_beside_the_base(reference: LoadedModel, adapter: Path) -> None:
    identity = variant_of(reference, adapter).identity
    stored = load_file(adapter / "adapter_model.safetensors")
    own = [module for module in identity.modules if module.type.endswith("(adapter)")]
    assert len(own) == len(stored) == 2 * 2 * len(PROJECTIONS)
    assert sum(module.parameters for module in own) == sum(each.numel() for each in stored.values())
    assert sum(module.stored_bytes for module in own) == 4 * sum(each.numel() for each in stored.values())
    assert identity.modules[: len(reference.identity.modules)] == reference.identity.modules
    assert identity.parameters == reference.identity.parameters + sum(module.parameters for module in own)


def test_merged_there_is_nothing_beside_the_base(reference: LoadedModel, adapter: Path) -> None:
    variant = variant_of(reference, adapter, merge=True)
    assert variant.identity.modules == reference.identity.modules
    assert variant.identity.weights_sha256 != reference.identity.weights_sha256
    assert [name for name, _ in variant.model.named_modules()] == [name for name, _ in reference.model.named_modules()]


def test_a_note_and_the_source_say_what_was_put_on(reference: LoadedModel, adapter: Path) -> None:
    variant = variant_of(reference, adapter)
    assert variant.identity.source.endswith(f"model + {adapter}")
    text = next(note.text for note in variant.notes if note.topic == "adapter")
    assert text.startswith("tiny-w4: LORA adapter adapter (r 4, alpha 8, 12 tensors, ")
    assert text.endswith("attached")
    assert {path.path.name for path in variant.files} >= {"adapter_model.safetensors", "adapter_config.json"}


def test_another_scale_is_another_model(reference: LoadedModel, adapter: Path) -> None:
    first = variant_of(reference, adapter).identity
    change_config(adapter, lora_alpha=16)
    second = variant_of(reference, adapter).identity
    assert first.weights_sha256 == second.weights_sha256
    assert first.config_sha256 != second.config_sha256
    change_config(adapter, lora_alpha=8, base_model_name_or_path="elsewhere/model")
    assert variant_of(reference, adapter).identity.config_sha256 == first.config_sha256


def test_the_adapter_gets_the_declared_dtype(reference: LoadedModel, adapter: Path) -> None:
    change(adapter, lambda tensors: tensors.update({k: v.to(torch.bfloat16) for k, v in tensors.items()}))
    variant = variant_of(reference, adapter)
    assert {parameter.dtype for parameter in variant.model.parameters()} == {torch.float32}
    assert not variant.model.training


# --- together with steps ------------------------------------------------------------------------------------


def test_beside_steps_the_base_is_on_the_grid_and_the_adapter_in_full_precision(
    reference: LoadedModel, adapter: Path
) -> None:
    step = RoundToNearest(bits=4)
    base = make_variant(plan_of(Path(reference.identity.source), VariantSpec(compress=(step,))), reference, ())
    variant = variant_of(reference, adapter, compress=(step,))
    q = variant.model.model.layers[0].self_attn.q_proj
    assert torch.equal(q.base_layer.weight, base.model.model.layers[0].self_attn.q_proj.weight)
    formats = {module.module: module.format.name for module in variant.identity.modules}
    assert formats["model.layers.0.self_attn.q_proj"] == "int4"
    assert formats["model.layers.0.self_attn.q_proj.lora_A.default"] == "float32"
    stored = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(q.lora_A["default"].weight, stored[name])


def test_merged_the_sum_is_what_steps_round(reference: LoadedModel, adapter: Path) -> None:
    merged = variant_of(reference, adapter, merge=True)
    rounded = variant_of(reference, adapter, merge=True, compress=(RoundToNearest(bits=8),))
    weight = merged.model.model.layers[0].self_attn.q_proj.weight
    found = rounded.model.model.layers[0].self_attn.q_proj.weight
    assert 0 < (found - weight).abs().max() < weight.abs().max() / 100
    assert {m.module: m.format.name for m in rounded.identity.modules}["model.layers.0.self_attn.q_proj"] == "int8"


def test_an_adapter_on_a_base_of_four_bits(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from tests.helpers.quantized_checkpoints import save_nf4

    sizes: dict[str, Any] = {"intermediate_size": 128}  # Its kernels take whole blocks of 32.
    reference = load(ModelSpec(model=str(save(tiny_llama(**sizes), tmp_path / "wide"))), "reference")
    adapter = save_lora(tiny_llama(**sizes), tmp_path / "lora")
    folder = save_nf4(Path(reference.identity.source), tmp_path / "nf4")
    base = load(ModelSpec(model=str(folder)), "base")
    variant = variant_of(reference, adapter, model=str(folder))
    q = variant.model.model.layers[0].self_attn.q_proj
    assert isinstance(q.base_layer, bitsandbytes.nn.Linear4bit)
    kept = {module.module: module for module in variant.identity.modules}
    assert kept["model.layers.0.self_attn.q_proj"].format.name == "nf4"
    assert kept["model.layers.0.self_attn.q_proj"].bits_per_weight < 5.5
    assert (logits(variant) - logits(base)).abs().max() > 0.01
    half = variant_of(reference, adapter, model=str(folder), dtype="bfloat16")
    own = {each.dtype for name, each in half.model.named_parameters() if "lora_" in name}
    assert own == {torch.bfloat16}
    merged = variant_of(reference, adapter, model=str(folder), merge=True)
    distance = (logits(merged) - logits(variant)).norm() / logits(variant).norm()
    assert distance < 0.2
    assert any("quantized (bitsandbytes) and were rounded again" in note.text for note in merged.notes)


# --- what does not fit --------------------------------------------------------------------------------------


def refused(reference: LoadedModel, adapter: Path, match: str) -> None:
    for merge in (False, True):
        with pytest.raises(ModelError, match=match):
            variant_of(reference, adapter, merge=merge)


def test_an_adapter_that_matches_nothing_is_refused(reference: LoadedModel, adapter: Path) -> None:
    change_config(adapter, target_modules=["query_key_value"])
    refused(reference, adapter, r"does not fit .*model: .*query_key_value.*expected an adapter that was trained on it")


def test_tensors_without_a_place_are_refused(reference: LoadedModel, adapter: Path) -> None:
    name = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    change(adapter, lambda tensors: tensors.update({name: torch.ones(4, 64)}))
    refused(
        reference,
        adapter,
        r"in the file, without a matching parameter in the model: .*layers\.7.*lora_A\.weight \(1 in all\)",
    )


def test_tensors_that_are_missing_are_refused(reference: LoadedModel, adapter: Path) -> None:
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    change(adapter, lambda tensors: tensors.pop(name))
    refused(reference, adapter, r"in the model, not in the file: .*layers\.1.*lora_B\.weight \(1 in all\)")


def test_other_shapes_are_refused(tmp_path: Path, adapter: Path) -> None:
    wider = load(ModelSpec(model=str(save(tiny_llama(hidden_size=96), tmp_path / "wider"))), "reference")
    refused(wider, adapter, r"does not fit .*wider.*size mismatch")


def test_a_prompt_is_no_adapter_of_modules(reference: LoadedModel, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    prompt = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    prompt.save_pretrained(tmp_path / "prompt")
    refused(reference, tmp_path / "prompt", r"PROMPT_TUNING modifies the input, not modules")


def test_pickles_damage_and_code_are_refused(reference: LoadedModel, adapter: Path) -> None:
    change_config(adapter, auto_map={"a": "b"})
    refused(reference, adapter, "auto_map")
    change_config(adapter, auto_map=None, megatron_config={"a": 1})
    refused(reference, adapter, "megatron_config makes peft import other code")
    change_config(adapter, megatron_config=None)
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(reference, adapter, r"adapter_model\.safetensors: damaged or truncated")
    path.rename(adapter / "adapter_model.bin")
    refused(reference, adapter, r"no adapter_model\.safetensors \(it has adapter_model\.bin\); pickles can run code")
    (adapter / "adapter_config.json").unlink()
    refused(reference, adapter, r"has no adapter_config\.json")


# --- what is noted ------------------------------------------------------------------------------------------


def notes(loaded: LoadedModel, topic: str) -> list[str]:
    return [note.text for note in loaded.notes if note.topic == topic and note.level == "warn"]


def test_an_adapter_of_another_base_is_noted(reference: LoadedModel, adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="someone/model")
    assert notes(variant_of(reference, adapter), "adapter") == []
    change_config(adapter, base_model_name_or_path="someone/other-7b")
    (text,) = notes(variant_of(reference, adapter), "adapter")
    assert "was trained on someone/other-7b, but is applied to " in text


def test_an_adapter_that_was_never_trained_is_noted(reference: LoadedModel, tmp_path: Path) -> None:
    fresh = save_lora(tiny_llama(), tmp_path / "fresh", std=0.0)
    change_config(fresh, base_model_name_or_path="")
    variant = variant_of(reference, fresh)
    assert torch.allclose(logits(variant), logits(reference), atol=1e-6)
    (text,) = notes(variant, "adapter")
    assert "it changes nothing" in text


@pytest.mark.parametrize("merge", [True, False])
def test_weights_that_are_not_finite_are_noted_and_left_to_the_measures(
    merge: bool, reference: LoadedModel, adapter: Path
) -> None:
    change(adapter, lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    variant = variant_of(reference, adapter, merge=merge)
    assert len(notes(variant, "non-finite weights")) == 1
    assert bool(logits(variant).isnan().any())

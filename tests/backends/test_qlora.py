"""QLoRA: only the adapter moves, the base is that of rounding alone, and both together are what would be shipped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from harness.backends import Compressed, Materials
from harness.backends.qlora import Qlora, predict_texts
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.models.identity import weights_sha256
from harness.modules.linears import linears
from harness.numerics.formats import stored_bits
from harness.testing import trials
from harness.training.data import Training
from harness.training.memory import Shapes, shapes_of
from tests.helpers.tiny_models import family, tiny_llama, tiny_tokenizer

pytest.importorskip("peft")

IDS = torch.tensor([[0, 5, 9, 2, 40, 33, 7, 90]])
FEW: dict[str, Any] = {"r": 4, "alpha": 8.0, "learning_rate": 1e-2, "batch": 4}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def training_of(model: PreTrainedModel, cache: Path | None = None, steps: int = 4) -> Training:
    training = trials.training_for(model, max(steps, 1))
    training.cache = cache
    training.spec = training.spec.model_copy(update={"steps": steps})
    return training


def trained(model: PreTrainedModel, cache: Path | None = None, steps: int = 4, **settings: Any) -> Compressed:
    """The compressed copy of a model."""
    step = Qlora(**(FEW | settings))
    return step.apply(copy.deepcopy(model), tiny_tokenizer(), Materials(training=training_of(model, cache, steps)))


def rounded(model: PreTrainedModel, **settings: Any) -> PreTrainedModel:
    step = RoundToNearest(format="nf4", double_quantize=True, **settings)
    return step.compress(copy.deepcopy(model), tiny_tokenizer(), ()).model


def adapter_of(done: Compressed) -> dict[str, Tensor]:
    assert done.adapter
    return load_file(done.adapter / "adapter_model.safetensors")


# --- what moves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "mixtral", "listed_experts", "qwen3"])
def test_the_base_is_that_of_rounding_alone_and_only_the_adapter_moves(name: str, tmp_path: Path) -> None:
    model = family(name)
    before, state = weights_sha256(model), torch.get_rng_state()
    done = trained(model, tmp_path)
    assert weights_sha256(done.model) == weights_sha256(rounded(model))
    assert weights_sha256(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    plain = {each.module for each in done.modules} & dict(linears(model)).keys()
    moved = [key for key, each in adapter_of(done).items() if "lora_B" in key and bool(each.any())]
    assert len(moved) == len(plain) >= 8


def test_without_a_step_nothing_changes_but_by_rounding(tmp_path: Path) -> None:
    model = tiny_llama()
    variant = trials.as_variant(Qlora(**FEW), model, (), training=training_of(model, tmp_path, steps=0))
    assert torch.equal(logits(variant.model), logits(rounded(model)))
    assert any("it changes nothing" in note.text for note in variant.notes)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def files(folder: str, chance: int, **settings: Any) -> list[bytes]:
        torch.manual_seed(chance)
        done = trained(tiny_llama(), tmp_path / folder, **settings)
        assert done.adapter
        return [path.read_bytes() for path in sorted(done.adapter.iterdir())]

    first = files("a", 0, dropout=0.1)
    assert files("b", 1, dropout=0.1) == first
    assert files("a", 2, dropout=0.1) == first  # From the finished training that was kept.
    assert files("c", 0) != first


def test_it_learns(tmp_path: Path) -> None:
    model = tiny_llama()
    for settings in ({}, {"dora": True}, {"targets": ("*.q_proj", "*.v_proj")}):
        training = training_of(model, steps=16)
        training.texts = training.held_out = training.texts[:4]
        step = Qlora(**(FEW | settings | {"alpha": 16.0, "learning_rate": 3e-2}))
        step.apply(copy.deepcopy(model), tiny_tokenizer(), Materials(training=training))
        (fitted,) = training.fits
        losses = [point.value for point in fitted.curves if point.series == "held_out_loss"]
        assert losses[-1] < losses[0] - 0.2


def test_adapters_are_put_where_targets_say(tmp_path: Path) -> None:
    done = trained(tiny_llama(), tmp_path, targets=("*.q_proj", "*.layers.1.mlp.down_proj"))
    held = {name.rpartition(".lora_")[0].removeprefix("base_model.model.model.") for name in adapter_of(done)}
    assert held == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"}
    with pytest.raises(BackendError, match=r"qlora: \['\*\.query'\] match none of the 14 linear layers"):
        trained(tiny_llama(), tmp_path, targets=("*.query",))
    with pytest.raises(BackendError, match="lm_head"):
        trained(tiny_llama(), tmp_path, targets=("lm_head",))


def test_a_tied_head_that_is_rounded_gets_a_weight_and_an_adapter_of_its_own(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    variant = trials.as_variant(Qlora(**FEW, skip=()), model, (), training=training_of(model, tmp_path))
    held: Any = variant.model
    assert torch.equal(held.model.embed_tokens.weight, model.get_parameter("model.embed_tokens.weight"))
    assert {"lora_A", "lora_B"} <= {name for name, _ in held.lm_head.named_children()}
    assert not held.config.tie_word_embeddings


# --- base and adapter are what is shipped --------------------------------------------------------------------


def test_the_variant_is_base_and_adapter(tmp_path: Path) -> None:
    model = tiny_llama()
    variant = trials.as_variant(Qlora(**FEW), model, (), training=training_of(model, tmp_path))
    modules = {each.module: each for each in variant.identity.modules}
    base = modules["model.layers.0.mlp.down_proj"]
    step = RoundToNearest(format="nf4", double_quantize=True)
    weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    bits = stored_bits(tuple(weight.shape), step.weight_format())
    assert (base.format.name, base.backend, base.stored_bytes) == ("nf4", "qlora", -(-bits // 8))
    beside = [each for each in variant.identity.modules if each.type.endswith("(adapter)")]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(each.stored_bytes for each in beside) == sum(each.nbytes for each in stored.values())
    alone = sum(each.parameters for each in trials.as_variant(step, model, ()).identity.modules)
    assert variant.identity.parameters == alone + sum(each.numel() for each in stored.values())
    assert variant.adapter == tmp_path / "adapter"
    assert variant.identity.weights_sha256 != weights_sha256(rounded(model))


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "mixtral", "listed_experts", "qwen2_moe"])
def test_the_variant_computes_what_peft_does_with_its_files(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = family(name)
    variant = trials.as_variant(Qlora(**FEW), model, (), training=training_of(model, tmp_path))
    assert variant.adapter
    base = rounded(model)
    plain = logits(base)
    expected = logits(cast(Any, PeftModel.from_pretrained(base, str(variant.adapter))))
    assert torch.allclose(logits(variant.model), expected, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-3


def test_the_adapter_has_the_dtype_of_the_model(tmp_path: Path) -> None:
    model: PreTrainedModel = tiny_llama().bfloat16()
    assert {each.dtype for each in adapter_of(trained(model, tmp_path)).values()} == {torch.bfloat16}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("make", [tiny_llama, lambda: family("gpt2")], ids=["llama", "gpt2"])
def test_merged_it_computes_the_same_in_the_precision_that_is_stated(make: Any, dora: bool, tmp_path: Path) -> None:
    model = make()
    beside, merged = (
        trials.as_variant(Qlora(**FEW, dora=dora, merge=merge), model, (), training=training_of(model, tmp_path / "t"))
        for merge in (False, True)
    )
    assert torch.allclose(logits(merged.model), logits(beside.model), atol=1e-4)
    assert merged.adapter is None
    assert {each.format.name for each in merged.identity.modules} == {"float32"}
    assert any("merged into the weights, which are float32 now and no longer NF4" in note.text for note in merged.notes)
    again = trials.as_variant(
        Qlora(**FEW, dora=dora, merge=True),
        model,
        (),
        after=(RoundToNearest(bits=8),),
        training=training_of(model, tmp_path / "t"),
    )
    assert "int8" in {each.format.name for each in again.identity.modules}


def test_a_second_adapter_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    first, second = (Qlora(**FEW, only=(f"*.layers.{number}.*",)) for number in range(2))
    with pytest.raises(BackendError, match=r"qlora: leaves an adapter beside the weights, and .* already; merge one"):
        trials.as_variant(first, model, (), after=(second,), training=training_of(model, tmp_path))


# --- bitsandbytes ---------------------------------------------------------------------------------------------


def nf4(**settings: Any) -> dict[str, Any]:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    return FEW | {"base": "bitsandbytes"} | settings


def wide() -> PreTrainedModel:
    return tiny_llama(intermediate_size=128)  # Its kernels take whole blocks of 32.


def test_a_base_of_bitsandbytes_stays_packed(tmp_path: Path) -> None:
    model, settings = wide(), nf4()
    done = trained(model, tmp_path, **settings)
    from harness.backends.bitsandbytes import Bitsandbytes

    alone = Bitsandbytes(method="nf4", double_quantize=True).compress(copy.deepcopy(model), tiny_tokenizer(), ())
    assert weights_sha256(done.model) == weights_sha256(alone.model)
    assert {each.kernel for each in done.modules} == {"real"}
    assert any(bool(each.any()) for name, each in adapter_of(done).items() if "lora_B" in name)
    beside = trials.as_variant(Qlora(**settings), model, (), training=training_of(model, tmp_path))
    merged = trials.as_variant(Qlora(**settings, merge=True), model, (), training=training_of(model, tmp_path))
    assert torch.allclose(logits(merged.model), logits(beside.model), atol=1e-4)
    assert {each.format.name for each in merged.identity.modules} == {"float32"}


@pytest.mark.parametrize("optimizer", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_optimizers_move_it_as_adamw_does(optimizer: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    expected = adapter_of(trained(tiny_llama(), tmp_path / "a"))
    found = adapter_of(trained(tiny_llama(), tmp_path / "b", optimizer=optimizer))
    assert all(torch.allclose(found[name], expected[name], atol=2e-3) for name in expected)
    assert any(not torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw", "paged_adamw_8bit"])
def test_a_training_that_was_killed_ends_in_the_same_bytes(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimizer != "adamw":
        pytest.importorskip("bitsandbytes", exc_type=ImportError)
    wide: dict[str, Any] = {"r": 64, "optimizer": optimizer}  # From 4,096 values on bitsandbytes keeps 8 bits.
    expected = adapter_of(trained(tiny_llama(), tmp_path / "whole", **wide))
    calls = []

    def die(*_: Any) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return predict_texts(*_)  # type: ignore[return-value]

    def killed() -> None:
        training = training_of(tiny_llama(), tmp_path / "killed")
        training.save_seconds = 0.0
        Qlora(**(FEW | wide)).apply(tiny_llama(), tiny_tokenizer(), Materials(training=training))

    with monkeypatch.context() as patched:
        patched.setattr("harness.backends.qlora.predict_texts", die)
        with pytest.raises(KeyboardInterrupt):
            killed()
    assert list((tmp_path / "killed").glob("*.state.safetensors"))
    found = adapter_of(trained(tiny_llama(), tmp_path / "killed", **wide))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- refusals -------------------------------------------------------------------------------------------------


def test_a_packed_model_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    from tests.helpers.library_layers import compressed

    packed = compressed(wide(), "bitsandbytes", method="nf4").model
    with pytest.raises(BackendError, match=r"qlora: LlamaForCausalLM is packed \(model\.layers\.0\.self_attn"):
        Qlora(**FEW).apply(packed, tiny_tokenizer(), Materials(training=training_of(wide(), tmp_path)))


@pytest.mark.parametrize("base", ["simulated", "bitsandbytes"])
def test_channels_that_rounding_loses_have_no_direction_for_dora(base: str, tmp_path: Path) -> None:
    """As do scales far below the mean of the others, which come back as 0 from 8 bits."""
    if base == "bitsandbytes":
        pytest.importorskip("bitsandbytes", exc_type=ImportError)
    model = wide()
    name = "model.layers.1.self_attn.v_proj"
    with torch.no_grad():
        model.get_parameter(f"{name}.weight")[3] = 0
    with pytest.raises(BackendError, match=rf"qlora: {name}: 1 of 32 output channels are 0 in NF4, and dora needs"):
        trained(model, tmp_path, dora=True, base=base)
    assert trained(model, tmp_path, base=base).adapter
    others = ("*.q_proj", "*.down_proj")
    assert trained(model, tmp_path, dora=True, base=base, targets=others).adapter


@pytest.mark.parametrize(
    "settings", [{"base": "bitsandbytes", "group_size": 48}, {"r": 0}, {"dropout": 1.0}, {"optimizer": "sgd"}]
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Qlora(**settings)


def test_libraries_are_those_of_the_settings() -> None:
    assert Qlora().libraries == ("peft",)
    for settings in ({"base": "bitsandbytes"}, {"optimizer": "paged_adamw"}):
        assert Qlora.model_validate(settings).libraries == ("peft", "bitsandbytes")


# --- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"base": "bitsandbytes", "optimizer": "paged_adamw_8bit"}])
def test_memory_is_as_forecast_by_shapes(settings: dict[str, Any]) -> None:
    if settings:
        pytest.importorskip("bitsandbytes", exc_type=ImportError)
    model = tiny_llama(tied=False, hidden_size=128, intermediate_size=256)
    step = Qlora(**(FEW | {"r": 64} | settings))
    training = training_of(model, steps=1)
    step.apply(copy.deepcopy(model), tiny_tokenizer(), Materials(training=training))
    measured = {each.part: each.measured for each in training.fits[0].memory}
    weights = sum(each.numel() for each in model.parameters())
    forecast = step.forecast_memory(weights, 4, shapes_of(model.config))
    assert measured["trainable"] == forecast["trainable"]
    assert measured["gradients"] == forecast["gradients"]
    # The tables of codes and values, of 1 KB at most each, and a counter of steps for every tensor.
    small = (1024 + 512) * 28
    assert 0 <= measured["optimizer"] - forecast["optimizer"] <= small + 0.1 * forecast["optimizer"]
    assert 0 <= measured["base"] - forecast["base"] <= small
    if settings:
        assert measured["base"] < 0.5 * 4 * weights
        assert measured["optimizer"] < 0.5 * 2 * measured["trainable"]


def test_a_base_of_7_billion_parameters_takes_3_5_gigabytes_and_its_scales() -> None:
    shapes = Shapes(hidden=4096, intermediate=11008, layers=32, vocabulary=32000, heads=4096, pairs=8192)
    found = Qlora(base="bitsandbytes", r=64).forecast_memory(6_738_415_616, 2, shapes)
    linear = 6_476_005_376
    assert shapes.linear_weights == linear
    assert found["base"] == -(-round(linear * (4 + 8 / 64 + 32 / (64 * 256))) // 8) + 2 * (6_738_415_616 - linear)
    assert found["trainable"] == 4 * 159_907_840
    assert found["optimizer"] == 8 * 159_907_840

"""Quantization-aware training on whole models: what is trained, what it is converted to, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness import plugins
from harness.backends import Backend, Compressed, Materials
from harness.backends.qat import Qat
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.models.identity import weights_sha256
from harness.modules.activations import input_roundings
from harness.modules.grid_check import check_grids
from harness.records.training import HELD_OUT_KL, Fitted
from harness.testing.trials import training_for
from harness.training.data import Training
from tests.helpers.tiny_models import family, tiny_gpt2, tiny_llama, tiny_tokenizer

FAST: dict[str, Any] = {"batch": 8, "learning_rate": 2e-3, "evaluations": 2}
INT3: dict[str, Any] = {"bits": 3, "granularity": "channel"}


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.eval().requires_grad_(False)
    return model


def llama(**config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        return frozen(tiny_llama(tied=config.pop("tied", False), initializer_range=0.15, **config))


def train(
    teacher: PreTrainedModel, steps: int = 12, model: PreTrainedModel | None = None, **fields: Any
) -> tuple[Compressed, Training]:
    training = training_for(teacher)
    training.spec = training.spec.model_copy(update={"steps": steps})
    student = copy.deepcopy(teacher if model is None else model)
    done = Qat(**{**FAST, **fields}).apply(student, tiny_tokenizer(), Materials(training=training))
    return done, training


def kl(teacher: PreTrainedModel, student: PreTrainedModel, training: Training) -> float:
    from harness.training.examples import Example, make_batch
    from harness.training.losses import mean_kl

    batch = make_batch([Example(ids) for ids in training.held_out], range(len(training.held_out)))
    with torch.no_grad():
        return float(mean_kl(batch.logits(teacher), batch.logits(student)))


def only_fit(training: Training) -> Fitted:
    (fitted,) = training.fits
    return fitted


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("format", [INT3, {"bits": 2}, {"bits": 4, "granularity": "tensor", "symmetric": False}])
def test_training_brings_the_rounded_model_closer_to_the_reference(format: dict[str, Any], learned: bool) -> None:
    teacher = llama()
    done, training = train(teacher, learned_steps=learned, **format)
    nearest = RoundToNearest(**format).compress(copy.deepcopy(teacher), tiny_tokenizer(), ()).model
    assert kl(teacher, done.model, training) < 0.9 * kl(teacher, nearest, training)
    assert len(done.modules) == 2 * 7
    check_grids(done.model, {each.module: each for each in done.modules})


def test_what_was_trained_is_what_comes_out() -> None:
    """The held-out divergence of the last evaluation, with rounding on the fly, is that of the converted model."""
    teacher = llama()
    static: dict[str, Any] = {"activations": {"bits": 8, "granularity": "tensor", "dynamic": False}}
    for fields in ({"learned_steps": True}, static):
        done, training = train(teacher, **INT3, **fields)
        found = only_fit(training).last(HELD_OUT_KL)
        assert found == pytest.approx(kl(teacher, done.model, training), rel=1e-3)


@pytest.mark.parametrize(
    "format",
    [
        INT3,
        {"bits": 4, "granularity": "block", "group_size": 16},
        {"bits": 4, "range": "percentile", "percentile": 99.0},
        {"bits": 4, "full_range": True, "overrides": ({"modules": ("*.down_proj",), "bits": 8},)},
        {"format": "fp8_e4m3"},
        {"format": "fp4_e2m1"},
        {"format": "nf4", "double_quantize": True},
        {"format": "mxfp4"},
        {"format": "nvfp4"},
    ],
)
def test_no_steps_are_rounding_to_nearest(format: dict[str, Any]) -> None:
    """Every format of round_to_nearest, to the same bytes and described in the same way."""
    teacher = llama()
    done, _ = train(teacher, steps=0, **format)
    nearest = RoundToNearest(**format).compress(copy.deepcopy(teacher), tiny_tokenizer(), ())
    assert weights_sha256(done.model) == weights_sha256(nearest.model)
    names = [each.model_copy(update={"backend": "", "type": ""}) for each in done.modules]
    assert names == [each.model_copy(update={"backend": "", "type": ""}) for each in nearest.modules]
    check_grids(done.model, {each.module: each for each in done.modules})
    trained, _ = train(teacher, steps=2, **format)
    check_grids(trained.model, {each.module: each for each in trained.modules})


def test_the_same_seeds_give_the_same_bytes_and_the_reference_keeps_its_own() -> None:
    teacher = llama()
    before = weights_sha256(teacher)
    first, again = (train(teacher, learned_steps=True, **INT3)[0] for _ in range(2))
    assert weights_sha256(first.model) == weights_sha256(again.model)
    assert weights_sha256(teacher) == before


def test_what_is_not_quantized_stays_as_it_is_if_asked() -> None:
    teacher = llama(tied=True)
    done, _ = train(teacher, update="quantized", only=("*.mlp.*",), **INT3)
    changed = {module.module for module in done.modules}
    assert len(changed) == 2 * 3
    old = dict(teacher.named_parameters())
    for name, parameter in done.model.named_parameters():
        assert torch.equal(parameter, old[name]) == (name.removesuffix(".weight") not in changed), name


def test_a_half_precision_model_comes_back_in_its_dtype() -> None:
    teacher = llama()
    for parameter in teacher.parameters():
        parameter.data = parameter.data.bfloat16()
    done, _ = train(teacher, update="quantized", only=("*.mlp.*",), **INT3)
    assert {parameter.dtype for parameter in done.model.parameters()} == {torch.bfloat16}
    assert done.model.model.rotary_emb.inv_freq.dtype == torch.float32
    same = dict(teacher.named_parameters())
    kept = [name for name, each in done.model.named_parameters() if torch.equal(each, same[name])]
    assert len(kept) == len(same) - 2 * 3
    check_grids(done.model, {each.module: each for each in done.modules})


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "mixtral"])
def test_other_architectures_and_experts(kind: str) -> None:
    teacher = frozen(tiny_gpt2(initializer_range=0.15) if kind == "gpt2" else family(kind))
    for learned in (False, True):
        done, training = train(teacher, bits=2, learned_steps=learned)
        found = only_fit(training)
        first, last = found.first(HELD_OUT_KL), found.last(HELD_OUT_KL)
        assert first is not None
        assert last is not None
        assert last < first
        assert last == pytest.approx(kl(teacher, done.model, training), rel=1e-2)
        counts = check_grids(done.model, {each.module: each for each in done.modules})
        assert set(counts) == {each.module for each in done.modules}
        if kind == "mixtral":
            assert any("experts" in name for name in counts)


def test_a_head_that_is_quantized_is_untied_and_the_embedding_keeps_its_own_weight() -> None:
    teacher = llama(tied=True)
    done, _ = train(teacher, update="quantized", skip=(), **INT3)
    assert not done.model.config.tie_word_embeddings
    student, before = (dict(each.named_parameters()) for each in (done.model, teacher))
    embedding = before["model.embed_tokens.weight"]
    assert torch.equal(student["model.embed_tokens.weight"], embedding)
    assert not torch.equal(student["lm_head.weight"], embedding)


@pytest.mark.parametrize(
    "inputs",
    [
        {"bits": 8},
        {"bits": 4, "symmetric": False},
        {"bits": 8, "granularity": "tensor"},
        {"bits": 8, "granularity": "tensor", "dynamic": False},
        {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False},
        {"format": "fp8_e4m3"},
        {"format": "mxfp8_e4m3"},
    ],
)
def test_inputs_are_rounded_while_it_is_trained_and_afterwards(inputs: dict[str, Any]) -> None:
    teacher = llama()
    done, training = train(teacher, activations=inputs, bits=8, granularity="channel")
    assert set(done.activations) == {each.module for each in done.modules}
    for name, form in done.activations.items():
        (rounding,) = input_roundings(done.model.get_submodule(name))
        assert rounding.static == (not inputs.get("dynamic", True))
        assert form.dynamic == inputs.get("dynamic", True)
        assert len(done.model.get_submodule(name)._forward_pre_hooks) == 1
    assert only_fit(training).last(HELD_OUT_KL) == pytest.approx(kl(teacher, done.model, training), rel=1e-2, abs=1e-7)


def test_a_static_range_is_a_moving_average_of_the_batches() -> None:
    """By hand: the ends begin at those of the first texts and move by ``momentum`` towards those of each batch."""
    from harness.numerics.formats import Format
    from harness.numerics.granularity import Blocks
    from harness.numerics.grids import integer
    from harness.training.rounding import RoundedInput

    rounded = RoundedInput(Format(integer(8), Blocks("tensor")), torch.tensor([-1.0, 2.0]), momentum=0.25)
    with torch.no_grad():
        rounded.round(torch.tensor([[-9.0, 9.0]]))
    assert rounded.ends is not None
    assert rounded.ends.tolist() == [-1.0, 2.0]
    rounded.round(torch.tensor([[-3.0, 4.0]]))
    assert rounded.ends.tolist() == [-1.5, 2.5]
    rounded.round(torch.tensor([[1.0, 0.5]]))
    assert rounded.ends.tolist() == [-1.125, 2.125]


def test_learned_steps_of_static_inputs_end_in_their_range() -> None:
    teacher = llama()
    inputs = {"bits": 8, "granularity": "tensor", "dynamic": False}
    done, training = train(teacher, activations=inputs, learned_steps=True, **INT3)
    assert only_fit(training).last(HELD_OUT_KL) == pytest.approx(kl(teacher, done.model, training), rel=1e-2)
    for name in done.activations:
        low, high = done.model.get_submodule(name).get_buffer("activation_range").tolist()
        assert low == -high < 0


@pytest.mark.parametrize("learned", [False, True])
def test_what_rounding_keeps_is_forecast(learned: bool) -> None:
    """Rounded weights and where the grid reaches them, and with learned steps how much each was rounded."""
    _, training = train(llama(), steps=1, learned_steps=learned, **INT3)
    (found,) = [each for each in only_fit(training).memory if each.part == "activations"]
    assert found.forecast is not None
    assert found.measured == pytest.approx(found.forecast, rel=0.1)


def test_losses_mix_texts_and_reference() -> None:
    teacher = llama()
    for weight, series in ((0.0, {"loss"}), (1.0, {"loss"}), (0.25, {"loss", "loss.nll", "loss.kl"})):
        _, training = train(teacher, steps=1, hard_labels=weight, **INT3)
        curves = only_fit(training).curves
        assert {point.series for point in curves if point.series.startswith("loss")} == series
    parts = {point.series: point.value for point in curves if point.step == 1}
    assert parts["loss"] == pytest.approx(parts["loss.nll"] + parts["loss.kl"], rel=1e-6)


def test_nothing_is_left_on_a_model_whose_training_fails() -> None:
    teacher = llama()
    student = copy.deepcopy(teacher)
    with pytest.raises(Exception, match="expected at least the 64 of one batch"):
        train(teacher, model=student, batch=64, **INT3)
    assert type(student.model.layers[0].mlp.down_proj) is nn.Linear


def test_packed_weights_are_refused_by_name() -> None:
    teacher = llama()
    packed = copy.deepcopy(teacher)
    layer: Any = packed.model.layers[0].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.data.to(torch.uint8), requires_grad=False)
    with pytest.raises(BackendError, match=r"qat: LlamaForCausalLM is packed \(model.layers.0.mlp.down_proj.weight\)"):
        train(teacher, model=packed, **INT3)
    configured = copy.deepcopy(teacher)
    configured.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(BackendError, match=r"packed by gptq, and codes cannot be trained; start from the checkpoint"):
        train(teacher, model=configured, **INT3)


def test_a_weight_that_is_not_finite_is_named() -> None:
    teacher = llama()
    broken = copy.deepcopy(teacher)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(BackendError, match=r"qat: model.layers.1.mlp.up_proj: it holds NaN"):
        train(teacher, model=broken, **INT3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "mxfp4", "learned_steps": True}, "plain floats"),
        ({"bits": 4, "double_quantize": True, "learned_steps": True}, "plain floats"),
        ({"bits": 4, "range": "mse", "learned_steps": True}, "range: min_max"),
        ({"bits": 4, "activations": {"bits": 8, "dynamic": False}}, "granularity: tensor"),
        ({"bits": 4, "activations": {"format": "fp8_e4m3", "bits": 8}}, "bits belongs to format: int"),
        ({"bits": 4, "activations": {"format": "fp8_e4m3", "symmetric": False}}, "no zero point"),
        ({"bits": 4, "activations": {"format": "mxfp4", "granularity": "tensor"}}, "brings its own groups"),
        ({"bits": 4, "hard_labels": 1.5}, "less than or equal to 1"),
        ({"bits": 4, "batch": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Qat.model_validate(fields)


def test_it_is_found_by_its_name() -> None:
    assert plugins.load(Backend, "qat") is Qat
    assert Qat(bits=4).puts_on_grid == ("weights",)
    assert Qat(bits=4, activations={"bits": 8}).puts_on_grid == ("weights", "activations")  # type: ignore[arg-type]
    assert Qat(bits=4).trains
    assert not Qat(bits=4).calibrates


def test_torchao_fake_quantizes_the_same_weights_alike() -> None:
    qat: Any = pytest.importorskip("torchao.quantization.qat")
    if not hasattr(qat, "IntxFakeQuantizeConfig") or not hasattr(qat, "IntxFakeQuantizer"):
        pytest.skip("this torchao has no fake quantizers with these names")
    from harness.numerics.formats import Format
    from harness.numerics.granularity import Blocks
    from harness.numerics.grids import integer
    from harness.training.fake_quantize import round_through

    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    grad = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    for bits in (4, 8):
        dtype: Any = getattr(torch, f"int{bits}")
        config = qat.IntxFakeQuantizeConfig(dtype, group_size=32, is_symmetric=True)
        mine, theirs = weight.clone().requires_grad_(True), weight.clone().requires_grad_(True)
        expected: Tensor = qat.IntxFakeQuantizer(config)(theirs)
        expected.backward(grad)
        found = round_through(mine, Format(integer(bits, full_range=True), Blocks("group", 32)))
        found.backward(grad)
        # torchao multiplies by the inverse of the scale, so a value between two codes may fall to either side.
        different = (found - expected).detach().abs()
        assert float((different > 1e-6).float().mean()) <= 0.005
        assert float(different.max()) <= 1.01 * float(weight.abs().max()) / (2 ** (bits - 1) - 0.5)
        assert mine.grad is not None
        assert theirs.grad is not None
        # The largest value of a group, which sets its scale, has a gradient through that there.
        apart = ~torch.isclose(mine.grad, theirs.grad, rtol=1e-5)
        assert int(apart.reshape(16, 2, 32).sum(-1).max()) <= 1

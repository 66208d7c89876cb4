"""What every backend of a library inherits: what is checked before, and what is found by looking afterwards."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.backends._common.library import LibraryBackend
from harness.backends.activations import Activations
from harness.errors import BackendError
from harness.modules.gemm_kind import multiplies_floats
from harness.records import NumberFormat
from harness.testing import trials
from tests.helpers.number_formats import INT8_INPUTS, named
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

MIDDLE = "model.layers.0.mlp.gate_proj"


class Codes(nn.Module):
    """A linear layer of 8-bit codes, that multiplies integers or what they stand for."""

    codes: Tensor
    step: Tensor

    def __init__(self, old: nn.Linear, integers: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.integers = old.in_features, old.out_features, integers
        step_O1 = old.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (old.weight.detach() / step_O1).round().to(torch.int8))
        self.register_buffer("step", step_O1[:, 0])
        self.bias = old.bias

    def forward(self, x: Tensor) -> Tensor:
        """Inputs rounded to 8 bits with a range for each token."""
        rows = x.reshape(-1, self.in_features)
        scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
        codes = (rows / scale).round()
        if self.integers:
            sums = torch._int_mm(codes.to(torch.int8), self.codes.T).float()
        else:
            sums = codes @ self.codes.T.float()
        return (sums * scale * self.step).reshape(*x.shape[:-1], self.out_features)


class Fake(LibraryBackend):
    """Lets a library of this file do it."""

    kind = "fake"
    dtypes = ("float32",)
    format: str = "int8"
    rounds: NumberFormat | None = None
    integers: bool = True
    fails: bool = False
    leaves: tuple[str, ...] = ()

    def number_format(self, module: Any) -> NumberFormat:
        return named(self.format, granularity="channel", symmetric=True)

    def inputs(self) -> NumberFormat | None:
        return self.rounds

    def hand_over(
        self, model: PreTrainedModel, names: Sequence[str], tokenizer: Any, calibration: Sequence[Tensor]
    ) -> PreTrainedModel:
        return self.replace_each(model, [name for name in names if name not in self.leaves], self._made)

    def _made(self, old: Any) -> nn.Module:
        if self.fails and old.in_features == 112:
            raise AssertionError("sizes must be multiples of 128")
        return Codes(old, self.integers)


def run(model: PreTrainedModel | None = None, **fields: Any) -> Compressed:
    return Fake(**fields).compress(model or tiny_llama(tied=False), tiny_tokenizer(), ())


def test_bytes_are_those_that_are_kept() -> None:
    done = run(tiny_llama(tied=False, mlp_bias=True))
    (found,) = [each for each in done.modules if each.module == MIDDLE]
    assert found.stored_bytes == 64 * 112 + 4 * 112 + 4 * 112
    assert found.bits_per_weight == 8 + 32 / 64
    assert (found.parameters, found.type, found.kernel) == (64 * 112 + 112, "Codes", "real")
    assert not done.notes


def test_codes_wider_than_the_format_are_called_simulated() -> None:
    done = run(format="int4")
    assert {each.kernel for each in done.modules} == {"simulated"}
    assert "14 of 14 modules are declared as int4" in done.notes[0].text
    assert "stores 8.5 bits per weight" in done.notes[0].text


def test_inputs_are_rounded_for_real_where_integers_are_multiplied() -> None:
    assert {each.kernel for each in run(rounds=INT8_INPUTS).modules} == {"real"}
    done = run(rounds=INT8_INPUTS, integers=False)
    assert {each.kernel for each in done.modules} == {"simulated"}
    assert "multiplies floats" in done.notes[0].text
    assert {each.kernel for each in run(integers=False).modules} == {"real"}, "weights alone are what is stored"


def test_the_variant_says_what_was_found() -> None:
    for integers in (True, False):
        step = Fake(rounds=INT8_INPUTS, integers=integers)
        identity = trials.as_variant(step, tiny_llama(tied=False), ()).identity
        found = {(each.kernel, each.activations) for each in identity.modules if each.backend == "fake"}
        assert found == {("real" if integers else "simulated", step.rounds)}
        assert identity.simulated is not integers


def test_what_the_library_left_alone_is_named() -> None:
    with pytest.raises(BackendError, match=rf"fake: {MIDDLE} and 0 more were silently left unchanged"):
        run(leaves=(MIDDLE,))


def test_what_the_library_raises_names_the_layer() -> None:
    with pytest.raises(BackendError, match=r"fake: model.layers.0.mlp.down_proj: AssertionError: sizes must be mult"):
        run(fails=True)


def test_a_layer_with_two_names_is_replaced_under_both() -> None:
    model = tiny_llama(tied=False)
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    done: Any = run(model).model
    assert isinstance(done.model.layers[1].mlp.up_proj, Codes)
    assert done.model.layers[1].mlp.up_proj is done.model.layers[0].mlp.up_proj


def test_a_tied_head_is_parted_from_the_embedding() -> None:
    model = tiny_llama(tied=True)
    before = model.model.embed_tokens.weight.detach().clone()
    done: Any = run(model, skip=()).model
    done.tie_weights()
    assert isinstance(done.lm_head, Codes)
    assert torch.equal(done.get_input_embeddings().weight, before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.bfloat16(), r"fake: model\S+: its weight is bfloat16, and the library supports float32"),
        (lambda model: model.get_submodule(MIDDLE).weight.data.fill_(torch.nan), rf"fake: {MIDDLE}: .*NaN"),
    ],
)
def test_weights_that_it_cannot_take_are_refused(spoil: Any, message: str) -> None:
    model = tiny_llama(tied=False)
    spoil(model)
    with pytest.raises(BackendError, match=message):
        run(model)


def test_layers_that_it_cannot_take_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"fake: transformer.h.0.attn.c_attn: is a Conv1D"):
        run(tiny_gpt2())
    monkeypatch.setattr(Fake, "devices", ("cuda",))
    with pytest.raises(BackendError, match=r"fake: model\S+: is on cpu, and the library supports cuda; set device:"):
        run()


def test_inputs_count_as_what_is_put_on_a_grid() -> None:
    assert Fake().puts_on_grid == ("weights",)
    assert Fake(rounds=INT8_INPUTS).puts_on_grid == ("weights", "activations")


def test_products_are_told_by_what_is_multiplied() -> None:
    linear = nn.Linear(64, 32)
    assert multiplies_floats(linear)
    assert multiplies_floats(Codes(linear, integers=False))
    assert not multiplies_floats(Codes(linear, integers=True))
    assert multiplies_floats(copy.deepcopy(linear).bfloat16())


def test_inputs_that_another_step_rounds_are_simulated() -> None:
    """Whatever the kernel of the layer, its inputs are held as floats."""
    rounding = Activations(bits=8, only=("*.down_proj",))
    with_codes = Fake(skip=("lm_head", "*.down_proj"))
    identity = trials.as_variant(with_codes, tiny_llama(tied=False), (), after=(rounding,)).identity
    found = {
        each.module.rpartition(".")[2]: each.kernel for each in identity.modules if each.backend or each.activations
    }
    assert (found["down_proj"], found["up_proj"]) == ("simulated", "real")

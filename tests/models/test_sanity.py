"""The checks of a loaded model, each on a model in which one thing alone is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from harness.errors import ModelError
from harness.models.sanity import (
    check_dtypes,
    check_loading,
    check_not_blank,
    check_placement,
    check_ready,
    find_ragged_groups,
)
from harness.records import ModelSpec
from tests.helpers.tiny_models import family

CLEAN: dict[str, list[Any]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec(model="m", **{"attention": "sdpa", "dtype": "float32", **fields})


def part(model: PreTrainedModel, path: str) -> Any:
    return model.get_submodule(path)


@pytest.fixture
def llama() -> PreTrainedModel:
    return family("llama")


class TestLoading:
    @pytest.mark.parametrize(
        ("key", "word"),
        [
            ("missing_keys", "missing (they would be random numbers)"), ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "of another shape"), ("error_msgs", "failed"),
        ],
    )  # fmt: skip
    def test_each_kind_of_tensor_that_does_not_fit_is_named(self, key: str, word: str) -> None:
        check_loading(Path("m"), CLEAN)
        with pytest.raises(ModelError) as caught:
            check_loading(Path("m"), CLEAN | {key: ["b", "a"]})
        assert str(caught.value).endswith(f"tensors {word}: a, b")

    def test_five_names_are_shown_and_the_others_counted(self) -> None:
        for count, end in ((5, "a0, a1, a2, a3, a4"), (6, "a0, a1, a2, a3, a4 and 1 more"), (7, "a4 and 2 more")):
            with pytest.raises(ModelError) as caught:
                check_loading(Path("m"), CLEAN | {"missing_keys": [f"a{i}" for i in range(count)]})
            assert str(caught.value).endswith(end)


class TestReady:
    def test_a_model_as_declared_is_ready(self, llama: PreTrainedModel) -> None:
        check_ready(llama, spec(), "")

    def test_another_attention_is_named(self, llama: PreTrainedModel) -> None:
        with pytest.raises(ModelError, match="the attention in use is sdpa, but declared is eager"):
            check_ready(llama, spec(attention="eager"), "")

    def test_a_part_in_training_mode_is_named(self, llama: PreTrainedModel) -> None:
        part(llama, "model.layers.1.mlp").training = True
        with pytest.raises(ModelError, match=r"m: model\.layers\.1\.mlp is in training mode"):
            check_ready(llama, spec(), "")
        llama.train()
        with pytest.raises(ModelError, match=r"m: the model is in training mode"):
            check_ready(llama, spec(), "")


class TestPlacement:
    def test_where_it_is_declared_to_be(self, llama: PreTrainedModel) -> None:
        check_placement(llama, "m", "cpu")

    @pytest.mark.parametrize("declared", ["cuda", "cuda:1"])
    def test_another_kind_of_device_is_named(self, llama: PreTrainedModel, declared: str) -> None:
        with pytest.raises(ModelError, match=f"is on cpu, but declared is {declared}"):
            check_placement(llama, "m", declared)

    def test_a_number_of_a_device_counts_only_where_one_is_declared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tensors of a second accelerator, made up: none is needed to compare where they say they are."""

        class Elsewhere:
            is_meta, device = False, torch.device("cuda:1")

        monkeypatch.setattr("harness.models.sanity.named_tensors", lambda model: [("w", Elsewhere())])
        for declared in ("cuda", "cuda:1"):
            check_placement(nn.Module(), "m", declared)
        for declared in ("cuda:0", "cuda:2", "cpu"):
            with pytest.raises(ModelError, match=f"w is on cuda:1, but declared is {declared}"):
                check_placement(nn.Module(), "m", declared)

    def test_a_tensor_without_values_is_named(self, llama: PreTrainedModel) -> None:
        part(llama, "model.norm").to("meta")
        with pytest.raises(ModelError, match=r"model\.norm\.weight is on the meta device"):
            check_placement(llama, "m", "cpu")


class TestDtypes:
    def test_a_parameter_of_another_dtype_is_named(self, llama: PreTrainedModel) -> None:
        check_dtypes(llama, spec(dtype="float32"), "")
        part(llama, "model.layers.0.mlp.up_proj").bfloat16()
        with pytest.raises(ModelError) as caught:
            check_dtypes(llama, spec(dtype="float32"), "")
        wanted = "m: model.layers.0.mlp.up_proj.weight is torch.bfloat16, but declared is float32"
        assert str(caught.value) == wanted

    def test_one_that_stays_in_float32_is_accepted_only_where_the_architecture_says_so(
        self, llama: PreTrainedModel
    ) -> None:
        kept: Any = llama.bfloat16()
        part(llama, "model.norm").float()
        with pytest.raises(ModelError, match=r"model\.norm\.weight is torch\.float32, but declared is bfloat16"):
            check_dtypes(llama, spec(dtype="bfloat16"), "")
        for field in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            setattr(kept, field, ["model.norm"])
            check_dtypes(llama, spec(dtype="bfloat16"), "")
            part(llama, "model.norm").half()
            with pytest.raises(ModelError, match=r"model\.norm\.weight is torch\.float16"):
                check_dtypes(llama, spec(dtype="bfloat16"), "")
            part(llama, "model.norm").float()
            setattr(kept, field, None)

    def test_of_a_checkpoint_that_came_quantized_only_layers_with_packed_weights_are_left_out(
        self, llama: PreTrainedModel
    ) -> None:
        part(llama, "model.layers.0.mlp.up_proj").bfloat16()
        check_dtypes(llama, spec(dtype="float32"), "awq")
        part(llama, "model.norm").bfloat16()
        with pytest.raises(ModelError, match=r"model\.norm\.weight is .*; its library supports only that: set dtype:"):
            check_dtypes(llama, spec(dtype="float32"), "awq")

    def test_integers_are_no_floats_of_another_width(self, llama: PreTrainedModel) -> None:
        part(llama, "model.norm").register_parameter("codes", nn.Parameter(torch.ones(3).int(), requires_grad=False))
        check_dtypes(llama, spec(dtype="float32"), "")


class TestBlank:
    @pytest.mark.parametrize("path", ["model.layers.1.mlp.up_proj", "model.embed_tokens", "lm_head"])
    def test_a_layer_of_zeros_is_named_and_one_weight_is_enough(self, llama: PreTrainedModel, path: str) -> None:
        check_not_blank(llama, "m")
        weight = part(llama, path).weight
        weight.zero_()
        with pytest.raises(ModelError, match=f"m: all weights of {path} are zero"):
            check_not_blank(llama, "m")
        weight[0, 0] = 1.0
        check_not_blank(llama, "m")

    def test_norms_and_empty_layers_may_be_zero(self, llama: PreTrainedModel) -> None:
        part(llama, "model.norm").weight.zero_()
        llama.add_module("none", nn.Linear(4, 0))
        check_not_blank(llama, "m")

    def test_a_stack_of_experts_of_zeros_is_named(self) -> None:
        model = family("mixtral")
        check_not_blank(model, "m")
        experts = part(model, "model.layers.1.mlp.experts")
        experts.down_proj.zero_()
        with pytest.raises(ModelError, match=r"m: all weights of model\.layers\.1\.mlp\.experts\.down_proj are zero"):
            check_not_blank(model, "m")

    def test_weights_of_a_library_are_not_looked_into(self, llama: PreTrainedModel) -> None:
        class Packed(nn.Parameter):
            """A parameter whose values are codes."""

        part(llama, "lm_head").weight = Packed(torch.zeros(4, 4), requires_grad=False)
        check_not_blank(llama, "m")
        del part(llama, "lm_head").weight
        check_not_blank(llama, "m")


class TestRaggedGroups:
    """The layers of the families have 32 inputs, those of down projections 64."""

    @pytest.mark.parametrize(("size", "ragged"), [(16, False), (32, False), (24, True), (31, True), (64, True)])
    def test_a_layer(self, llama: PreTrainedModel, size: int, ragged: bool) -> None:
        name = "model.layers.0.mlp.up_proj"
        assert find_ragged_groups(llama, {name: size}) == ([name] if ragged else [])

    def test_inputs_are_counted_however_a_class_stores_its_weight(self) -> None:
        name = "transformer.h.0.attn.c_attn"  # A Conv1D [32, 96].
        assert find_ragged_groups(family("gpt2"), {name: 32}) == []
        assert find_ragged_groups(family("gpt2"), {name: 96}) == [name]

    @pytest.mark.parametrize(("kind", "inputs"), [("mixtral", {"down_proj": 64, "gate_up_proj": 32})])
    def test_a_stack_of_experts(self, kind: str, inputs: dict[str, int]) -> None:
        model = family(kind)
        for parameter, count in inputs.items():
            name = f"model.layers.0.mlp.experts.{parameter}"
            assert find_ragged_groups(model, {name: count}) == []
            assert find_ragged_groups(model, {name: count - 1}) == [name]


def test_unknown_names_have_no_groups(llama: PreTrainedModel) -> None:
    checks: list[Callable[[], list[str]]] = [
        lambda: find_ragged_groups(llama, {}), lambda: find_ragged_groups(llama, {"model.nothing": 7}),
    ]  # fmt: skip
    assert [check() for check in checks] == [[], []]

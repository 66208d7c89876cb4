"""Models that see the tokens after a token are refused, models that only round differently are not."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from harness.errors import ModelError
from harness.models.language_model import LanguageModel, TransformersModel
from harness.models.loading import load
from harness.models.verification.causality import check_causal
from harness.records import ModelSpec
from tests.helpers.tiny_models import FAMILIES, VOCABULARY, family, save
from tests.helpers.zoo import ZOO

BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def encoder(spread: float = 0.02, **config: Any) -> Any:
    torch.manual_seed(0)
    make: Any = t.BertForMaskedLM
    return make(t.BertConfig(**BERT, initializer_range=spread, **config)).eval()


class Moving(LanguageModel):
    """Logits of three tokens; those before the last move by ``earlier`` between two texts, the last ones by ``last``,
    and all of them by ``own`` between two copies of one text."""

    def __init__(
        self, earlier: tuple[float, float], dtype: torch.dtype = torch.float32, last: float = 1.0, own: float = 0.0
    ) -> None:
        self.moves, self.dtype, self.own = torch.tensor([*earlier, last]), dtype, own

    vocabulary = 8

    def logits(self, ids_BT: Tensor, mask_BT: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
        first, other = torch.zeros(3, 8), self.moves[:, None].expand(3, 8)
        return torch.stack([first, other, first + self.own]).to(self.dtype)

    def for_transformers(self) -> t.PreTrainedModel:
        raise NotImplementedError


@pytest.mark.parametrize("spread", [0.02, 0.15])
def test_a_folder_of_a_masked_language_model_is_refused_in_one_sentence(tmp_path: Path, spread: float) -> None:
    save(encoder(spread), tmp_path)
    with pytest.raises(ModelError, match=r"a change of the last of 3 tokens moves .* encoder .* is_decoder") as refused:
        load(ModelSpec(model=str(tmp_path)), "m")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_the_same_folder_as_a_decoder_is_taken(tmp_path: Path) -> None:
    model: Any = t.BertLMHeadModel
    torch.manual_seed(0)
    save(model(t.BertConfig(**BERT, is_decoder=True)).eval(), tmp_path)
    assert load(ModelSpec(model=str(tmp_path)), "m").name == "m"


@pytest.mark.parametrize("spread", [0.01, 0.02, 0.15])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_encoder_is_refused(dtype: torch.dtype, spread: float) -> None:
    """With small weights, too: then every token attends to all alike, and 16 bits round away what the last one adds."""
    make: Any = t.BertLMHeadModel
    torch.manual_seed(0)
    model = make(t.BertConfig(**BERT, initializer_range=spread)).eval().to(dtype)
    with pytest.raises(ModelError, match="a change of the last"):
        check_causal(TransformersModel(model), "m")


def test_a_model_without_derivatives_is_compared_on_two_texts() -> None:
    class Detached(TransformersModel):
        def logits(self, ids_BT: Tensor, mask_BT: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
            return super().logits(ids_BT, mask_BT, positions_BT).detach()

    with pytest.raises(ModelError, match="a change of the last"):
        check_causal(Detached(encoder(0.15)), "m")
    check_causal(Detached(family("llama")), "m")


def test_the_model_is_left_as_it_was() -> None:
    model: Any = family("llama")
    check_causal(TransformersModel(model), "m")
    assert not model.get_input_embeddings()._forward_hooks
    assert not any(each.requires_grad or each.grad is not None for each in model.parameters())


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_one_call_and_one_derivation_are_enough(looks_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = encoder(0.15) if looks_ahead else family("llama")
    grad, asked = torch.autograd.grad, list[str]()

    def follow(*given: Any, **named: Any) -> Any:
        asked.append("derivative")
        return grad(*given, **named)

    monkeypatch.setattr(torch.autograd, "grad", follow)
    model.register_forward_pre_hook(lambda *_: asked.append("call"))
    expected = pytest.raises(ModelError, match="a change of the last") if looks_ahead else nullcontext()
    with expected:
        check_causal(TransformersModel(model), "m")
    assert asked == ["call", "derivative"]


def test_a_state_that_a_model_keeps_of_its_last_call_holds_no_derivatives() -> None:
    model: Any = family("llama")

    def keep(module: Any, _inputs: object, output: Any) -> None:
        module.last = {"of the call": [output.logits]}

    model.register_forward_hook(keep)
    check_causal(TransformersModel(model), "m")
    assert not model.last["of the call"][0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted({*ZOO, *FAMILIES} - {"listed_experts"}))
def test_every_architecture_is_causal(name: str, dtype: torch.dtype) -> None:
    model: Any = family(name)
    check_causal(TransformersModel(model.to(dtype)), name)
    copy.deepcopy(model)  # A state that it keeps of its last call would bring the derivatives along.


@pytest.mark.parametrize(
    ("earlier", "dtype", "quantized", "refused"),
    [
        ((0.01, 0.01), torch.float32, False, True),
        ((0.01, 0.0), torch.float32, False, False),  # Only what sees all later tokens moves everywhere.
        ((0.0003, 0.0003), torch.float32, False, False),
        ((0.0004, 0.0004), torch.float32, False, True),
        ((0.08, 0.08), torch.bfloat16, False, False),
        ((0.1, 0.1), torch.bfloat16, False, True),
        ((0.08, 0.08), torch.float32, True, False),
        ((0.1, 0.1), torch.float32, True, True),
        ((float("nan"), float("nan")), torch.float32, False, False),
    ],
)
def test_rounding_is_told_from_looking_ahead(
    earlier: tuple[float, float], dtype: torch.dtype, quantized: bool, refused: bool
) -> None:
    model = Moving(earlier, dtype)
    if refused:
        with pytest.raises(ModelError, match=r"m: a change of the last of 3 tokens"):
            check_causal(model, "m", quantized)
    else:
        check_causal(model, "m", quantized)


def test_a_model_that_moves_nowhere_is_left_to_other_checks() -> None:
    check_causal(Moving((0.0, 0.0), last=0.0), "m")


def test_a_model_that_cannot_be_called_is_left_to_the_pass() -> None:
    class Broken(Moving):
        def logits(self, ids_BT: Tensor, mask_BT: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
            raise RuntimeError("no kernel")

    check_causal(Broken((1.0, 1.0)), "m")


def test_a_model_that_does_not_repeat_itself_is_left_to_the_check_that_says_so() -> None:
    with pytest.raises(ModelError, match="a change of the last"):
        check_causal(Moving((0.01, 0.01), own=0.0005), "m")
    check_causal(Moving((0.01, 0.01), own=0.002), "m")

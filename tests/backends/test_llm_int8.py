"""LLM.int8() against its definition, against bitsandbytes, and on whole models."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness.backends import Compressed
from harness.backends.llm_int8 import LLMInt8
from harness.backends.round_to_nearest import RoundToNearest
from harness.data.documents import read_documents
from harness.errors import BackendError
from harness.modules.transforms.mixed_int8 import MixedInt8Linear
from harness.numerics.llm_int8 import EXACT_INPUTS, exact_product, mixed_product, weight_codes
from harness.pocket import MODEL_DIR
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

THRESHOLD = 6.0
LIBRARY_CONSTANT = 6.200124e-05
"""With this bitsandbytes 0.50.2 undoes both scales; 1 / 127² is 6.200012e-05."""
MIDDLE = "model.layers.0.mlp.gate_proj"


def compress(model: PreTrainedModel, **fields: Any) -> Compressed:
    return LLMInt8(**fields).compress(model, tiny_tokenizer(), ())


def halves(*shape: int, seed: int = 0) -> Tensor:
    """Values that float16 has exactly, because the library quantizes nothing else."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half().float()


def with_outliers(tokens: int, inputs: int, seed: int = 1) -> Tensor:
    x = halves(tokens, inputs, seed=seed)
    x[:, 3] *= 10
    x[tokens // 2, inputs - 1] = -THRESHOLD
    x[tokens - 1, 0] = 5.996
    return x.half().float()


def from_the_definition(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Scalar by scalar, with integer sums and float64 scales."""
    (tokens, inputs), outputs = x.shape, len(weight)
    outliers = [any(abs(x[n, i].item()) >= threshold for n in range(tokens)) for i in range(inputs)]
    result = torch.zeros(tokens, outputs, dtype=torch.float64)
    for n in range(tokens):
        below = [value for value in x[n].tolist() if abs(value) < threshold]
        largest = max((abs(value) for value in below), default=0.0)
        for o in range(outputs):
            top = weight[o].abs().max().item()
            codes = [round(value * 127 / top) for value in weight[o].tolist()]
            whole, kept = 0, 0.0
            for i in range(inputs):
                if outliers[i]:
                    kept += x[n, i].item() * codes[i] * top / 127
                elif largest:
                    whole += round(x[n, i].item() * 127 / largest) * codes[i]
            result[n, o] = whole * largest * top / 127**2 + kept
    return result


@pytest.mark.parametrize("threshold", [THRESHOLD, 1.5, 0.01, 1e6])
def test_it_computes_what_the_definition_says(threshold: float) -> None:
    x, weight = with_outliers(7, 19), torch.randn(5, 19, generator=torch.Generator().manual_seed(2))
    x[4] = 0
    codes, steps = weight_codes(weight)
    found = mixed_product(x, codes, steps, threshold)
    torch.testing.assert_close(found.double(), from_the_definition(x, weight, threshold), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("outliers", [True, False])
def test_it_computes_what_bitsandbytes_does(tokens: int, outliers: bool) -> None:
    library = pytest.importorskip("bitsandbytes")
    x = with_outliers(tokens, 96) if outliers else halves(tokens, 96)
    weight, bias = halves(40, 96, seed=3), halves(40, seed=4)
    layer = library.nn.Linear8bitLt(96, 40, bias=True, has_fp16_weights=False, threshold=THRESHOLD)
    layer.weight = library.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer.bias.data = bias.clone()
    with torch.no_grad():
        expected = layer.to("cpu").eval()(x)
    codes, steps = weight_codes(weight)
    assert torch.equal(codes, layer.state.CB)
    torch.testing.assert_close(steps * 127, layer.state.SCB, rtol=1e-6, atol=0)
    columns = (x.abs() >= THRESHOLD).any(0)
    kept = x[:, columns] @ (codes[:, columns] * steps[:, None]).T
    found = mixed_product(x, codes, steps, THRESHOLD)
    as_library = (found - kept) * (LIBRARY_CONSTANT * 127**2) + kept + bias
    # One code more or less anywhere would be a thousand times as much.
    torch.testing.assert_close(as_library, expected, rtol=1e-5, atol=1e-5)
    assert bool(columns.any()) == outliers


def test_sums_of_products_of_codes_are_exact() -> None:
    random = torch.Generator().manual_seed(5)
    left, right = (torch.randint(90, 128, (rows, 6 * EXACT_INPUTS + 7), generator=random) for rows in (3, 4))
    expected = (left @ right.T).float()
    assert torch.equal(exact_product(left.float(), right.to(torch.int8)), expected)
    assert expected.max() > 2**26
    assert not torch.equal(left.half() @ right.half().T, expected)


def test_the_largest_sum_of_one_piece_fits_into_float32() -> None:
    codes = torch.full((1, EXACT_INPUTS), 127)
    assert int((codes @ codes.T).item()) <= 2**24
    assert torch.equal(exact_product(codes.float(), codes.to(torch.int8)), (codes @ codes.T).float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_seen_in_the_output(bad: float) -> None:
    x, (codes, steps) = halves(4, 16), weight_codes(halves(3, 16))
    x[2, 5] = bad
    found = mixed_product(x, codes, steps, THRESHOLD).isfinite().all(1).tolist()
    assert found == [True, True, False, True]


# --- whole models -----------------------------------------------------------------------------------------------


def test_a_model_computes_with_codes_in_every_layer_but_the_head() -> None:
    model, original = tiny_llama(), tiny_llama()
    compress(model, threshold=1.5)
    assert sum(isinstance(module, MixedInt8Linear) for module in model.modules()) == 14
    assert type(model.lm_head) is torch.nn.Linear
    x = with_outliers(6, 64).reshape(2, 3, 64)
    expected = from_the_definition(x.flatten(0, 1), original.get_parameter(f"{MIDDLE}.weight").detach(), 1.5)
    found = model.get_submodule(MIDDLE)(x)
    torch.testing.assert_close(found.flatten(0, 1).double(), expected, rtol=1e-5, atol=1e-6)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits, expected = model(ids).logits, original(ids).logits
    assert 0 < (logits - expected).norm() / expected.norm() < 0.05


def test_the_format_says_what_was_done() -> None:
    model = tiny_llama()
    done = compress(model)
    found = {module.module: module for module in done.modules}[MIDDLE]
    assert (found.format.name, found.format.granularity, found.format.symmetric, found.kernel) == (
        "int8",
        "channel",
        True,
        "simulated",
    )
    assert (found.parameters, found.stored_bytes) == (64 * 112, 64 * 112 + 112 * 4)
    assert found.bits_per_weight == 8 + 32 / 64
    assert done.activations.keys() == {module.module for module in done.modules}
    (inputs,) = set(done.activations.values())
    assert (inputs.name, inputs.granularity, inputs.dynamic, inputs.outliers) == ("int8", "token", True, 6.0)
    assert str(inputs) == "int8 per token, dynamic; columns with |x| >= 6 in full precision"


def test_conv1d_and_biases() -> None:
    model, original = tiny_gpt2(), tiny_gpt2()
    done = compress(model)
    name = "transformer.h.1.mlp.c_fc"
    layer: Any = model.get_submodule(name)
    before: Any = original.get_submodule(name)
    with torch.no_grad():
        before.bias.normal_()
        layer.bias.copy_(before.bias)
    x = halves(3, 48)
    expected = functional.linear(x, before.weight.T, before.bias)
    assert (layer(x) - expected).abs().max() < 0.02 * expected.abs().max()
    described = {module.module: module for module in done.modules}[name]
    assert described.stored_bytes == 48 * 192 + 192 * 4 + 192 * 4
    assert described.parameters == 48 * 192 + 192


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_kept_and_the_sums_are_those_of_float32(dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)  # type: ignore[arg-type]
    weight = model.get_parameter(f"{MIDDLE}.weight").detach().clone()
    compress(model)
    layer, x = model.get_submodule(MIDDLE), with_outliers(4, 64).to(dtype)
    codes, steps = weight_codes(weight)
    assert torch.equal(layer(x), mixed_product(x, codes, steps, THRESHOLD).to(dtype))
    assert layer.weight.dtype == dtype
    assert model(torch.arange(9)[None]).logits.dtype == dtype


def test_outliers_are_those_of_all_inputs_together() -> None:
    compress(model := tiny_llama())
    layer, calm = model.get_submodule(MIDDLE), halves(2, 64).clamp(-3, 3)
    wild = calm.clone()
    wild[1, 7] = 20
    assert torch.equal(layer(calm)[0], layer(calm[:1])[0])
    # In company of the outlier, the first token's value in column 7 is not rounded either.
    assert not torch.equal(layer(wild)[0], layer(calm)[0])


def test_tied_heads_and_shared_layers() -> None:
    model = tiny_llama()
    first, second = (model.get_submodule(f"model.layers.{index}.mlp.gate_proj") for index in (0, 1))
    second.weight = first.weight
    embedding = model.model.embed_tokens.weight.detach().clone()
    compress(model, skip=())
    first, second = (model.get_submodule(f"model.layers.{index}.mlp.gate_proj") for index in (0, 1))
    assert first.codes is second.codes
    assert isinstance(model.lm_head, MixedInt8Linear)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    model.tie_weights()
    assert isinstance(model.lm_head, MixedInt8Linear)
    with torch.no_grad():
        assert model(torch.arange(9)[None]).logits.isfinite().all()


def test_a_layer_with_two_names_is_replaced_under_both() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    compress(model)
    assert isinstance(model.model.layers[1].mlp.up_proj, MixedInt8Linear)
    assert model.model.layers[1].mlp.up_proj is model.model.layers[0].mlp.up_proj


def test_copies_compute_alone() -> None:
    compress(model := tiny_llama())
    other = copy.deepcopy(model)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        expected = model(ids).logits
        other.get_buffer(f"{MIDDLE}.codes").zero_()
        assert torch.equal(model(ids).logits, expected)
        assert not torch.equal(other(ids).logits, expected)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter(f"{MIDDLE}.weight")[3, 4] = float("nan")
    with pytest.raises(BackendError, match=rf"llm_int8: {MIDDLE}: .*NaN or infinity"):
        compress(model)


@pytest.mark.parametrize("fields", [{"threshold": 0.0}, {"threshold": float("inf")}, {"bits": 8}])
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LLMInt8(**fields)


def test_settings_survive_a_round_trip() -> None:
    step = LLMInt8(threshold=4.5, skip=())
    assert LLMInt8.model_validate_json(json.dumps(step.settings())) == step


def test_outlier_columns_save_the_embedded_model() -> None:
    """Its norms put a few channels far above the others: rounded with them, all the others lose their codes."""
    reference = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    steps = {
        "weights": RoundToNearest(bits=8, granularity="channel"),
        "mixed": LLMInt8(),
        "plain": LLMInt8(threshold=1e6),
    }
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    texts = [document.text for document in read_documents("pocket-heldout", 4, "text", "\n\n", 0)]
    documents = [torch.tensor([tokenizer(text).input_ids]) for text in texts]
    kl = dict.fromkeys(steps, 0.0)
    for name, step in steps.items():
        model = step.compress(copy.deepcopy(reference), tokenizer, ()).model
        with torch.no_grad():
            for ids in documents:
                expected, found = (side(ids).logits[0].double().log_softmax(-1) for side in (reference, model))
                kl[name] += (expected.exp() * (expected - found)).sum().item()
    assert kl["mixed"] < 3 * kl["weights"]
    assert kl["plain"] > 10 * kl["mixed"]

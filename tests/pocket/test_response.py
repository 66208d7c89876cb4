"""How the embedded model responds to compression, and where its outliers are planted."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from harness.pocket import MODEL_DIR, response
from harness.pocket.describe import load
from harness.pocket.plant import Plant
from harness.pocket.response import RECIPES, baseline, choose_plant, clustered_interval, measure, quantize_weight


@pytest.fixture(scope="module")
def untrained(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A tiny random model in which channels 3 and 11 are naturally the largest."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [3, 11]] *= 4
    return model


def test_outliers_are_planted_where_activations_lose_most(untrained: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    assert choose_plant(untrained, tokenizer, screened=2, confirmed=8).channels == (3, 11)


def test_channels_that_cost_the_weights_too_much_come_last(
    untrained: LlamaForCausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "LOSSLESS", 3e-7)  # channel 3 costs 6e-7, channel 11 half of that
    channels = choose_plant(untrained, tokenizer, screened=2, confirmed=8).channels
    assert 3 not in channels
    assert 11 in channels


@pytest.mark.parametrize(("lossy", "taken"), [(0, 0), (2, 2), (28, 0)])
def test_the_first_pair_under_which_weights_lose_nothing_is_taken(
    lossy: int, taken: int, untrained: LlamaForCausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Plant] = []
    monkeypatch.setattr(response, "apply_plant", lambda _, plant: tried.append(plant))
    # Screening looks at the divergence alone; what the pairs cost is said by the interval.
    monkeypatch.setattr(
        response,
        "clustered_interval",
        lambda *_: (0.5, 0.1, 0.9) if sum(len(each.channels) == 2 for each in tried) <= lossy else (0.0, -0.1, 0.1),
    )
    chosen = choose_plant(untrained, tokenizer, screened=2, confirmed=4)
    pairs = [each for each in tried if len(each.channels) == 2]
    assert len(pairs) == (28 if lossy == 28 else lossy + 1)
    assert chosen == pairs[taken]


def test_rounding_uses_one_scale_a_group() -> None:
    weight = torch.tensor([[1.2, -7.0, 0.4, 0.1], [14.0, 2.9, 0.0, 0.0]])
    whole = torch.tensor([[2.0, -8.0, 0.0, 0.0], [14.0, 2.0, 0.0, 0.0]])  # steps of two, -3.5 to even
    assert torch.equal(quantize_weight(weight, 4, None), whole)
    assert torch.equal(quantize_weight(weight, 4, 0)[0], torch.tensor([1.0, -7.0, 0.0, 0.0]))
    assert quantize_weight(weight, 4, 2)[0, 2].item() == pytest.approx(0.4)


def test_the_interval_is_clustered_by_document() -> None:
    deltas, counts = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([10.0, 10.0, 10.0, 10.0])
    mean, low, high = clustered_interval(deltas, counts)
    assert mean == 0.0
    assert high == pytest.approx(1.959964 * (4 * 4 / 3) ** 0.5 / 40, rel=1e-5)
    assert low == -high


@pytest.mark.slow
def test_it_responds_to_compression_as_large_models_do() -> None:
    base = baseline(*load(MODEL_DIR), count=150)
    found = {recipe.name: measure(base, recipe, items=4).change for recipe in RECIPES}
    lossless, grouped = found["INT8 per channel"], found["INT4 group 32"]
    assert lossless.low <= 0.0 <= lossless.high < 0.002
    assert lossless.agreement > 0.97
    assert grouped.low > 0.0
    assert grouped.nll_delta < 0.05
    assert found["INT4 per tensor"].nll_delta > 0.5
    assert found["INT3 group 32"].nll_delta > 2 * grouped.nll_delta
    assert found["INT2 per channel"].nll_delta > 1.0
    assert found["INT8 per channel, activations INT8 per tensor"].low > 0.04
    assert found["the same after SmoothQuant 0.5"].nll_delta < 0.01

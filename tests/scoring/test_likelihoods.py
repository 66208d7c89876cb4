"""Likelihoods of packed rows against those of one sequence at a time, on every architecture in wide use."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.lockstep.decoder import Decoder
from harness.models.language_model import TransformersModel
from harness.scoring.likelihoods import Likelihood, PackedLikelihoods
from harness.scoring.packing import Scored
from harness.scoring.side import NotPackedError, PackedSide
from harness.testing.models import VOCABULARY, tiny_llama
from tests.helpers.zoo import ZOO, make_model

LIMIT = 64
READ_IN_ORDER = {
    "minimax", "lfm2", "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "bamba",
}  # fmt: skip
"""Architectures in which a token depends on more than the tokens that a mask shows it."""
OWN_PLACES = {"bloom", "mpt"}
"""Architectures that take distances between tokens from their places in the row."""
TAKE_NO_POSITIONS = {"mamba", "mamba2", "falcon_mamba", "rwkv"}
WINDOWED = {"mistral", "gemma2", "gemma3_text", "gpt_oss", "exaone4", "llama4_text"}
"""Architectures whose layers see fewer tokens than the longer sequences have."""


def make_items(seed: int, longest: int) -> list[Scored]:
    """Six items of a context and several choices."""
    rng = random.Random(seed)

    def draw(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(least, most)))

    contexts = [draw(2, longest - 5) for _ in range(6)]
    return [Scored(context, draw(1, 5)) for context in contexts for _ in range(3)]


@torch.no_grad()
def score_alone(model: Any, sequence: Scored) -> Likelihood:
    """Straight from the model in float64, one sequence at a time."""
    read = sequence.inputs(LIMIT)
    logits = model(input_ids=torch.tensor([read]), use_cache=False).logits[0, -len(sequence.continuation) :]
    logp = torch.log_softmax(logits.double(), -1)
    wanted = torch.tensor(sequence.continuation)
    return Likelihood(float(logp[range(len(wanted)), wanted].sum()), bool((logp.argmax(-1) == wanted).all()))


def score(side: PackedSide, model: Any, sequences: list[Scored]) -> list[tuple[float, bool]]:
    return side.score(sequences, LIMIT, None, lambda numbers: [score_alone(model, sequences[n]) for n in numbers])


def make_side(model: Any) -> PackedSide:
    identity = SimpleNamespace(cache=None, modules=())
    loaded: Any = SimpleNamespace(name="tiny", model=model, language_model=TransformersModel(model), identity=identity)
    return PackedSide(loaded, 4)


@pytest.mark.parametrize("kind", ZOO)
def test_packed_rows_change_no_likelihood_or_are_refused(kind: str) -> None:
    model = make_model(kind)
    side, sequences = make_side(model), make_items(1, 8 if kind in WINDOWED else 40)
    if kind in READ_IN_ORDER | OWN_PLACES:
        with pytest.raises(NotPackedError):
            score(side, model, sequences)
        return
    for (total, greedy), sequence in zip(score(side, model, sequences), sequences, strict=True):
        expected = score_alone(model, sequence)
        assert total == pytest.approx(expected.total, abs=2e-5)
        assert greedy == expected.greedy


@pytest.mark.parametrize("kind", sorted(WINDOWED))
def test_sequences_longer_than_a_window_are_refused(kind: str) -> None:
    model = make_model(kind)
    with pytest.raises(NotPackedError, match=r"a layer sees 8 tokens, fewer than the longest sequence has \(\d\d\)"):
        score(make_side(model), model, make_items(1, 40))


@pytest.mark.parametrize("kind", sorted(WINDOWED | READ_IN_ORDER - TAKE_NO_POSITIONS))
def test_what_is_not_declared_shows_where_sequences_are_scored_both_ways(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.scoring.side.explain_dependence", lambda loaded: "")
    monkeypatch.setattr("harness.scoring.side.find_window", lambda model: None)
    model = make_model(kind)
    with pytest.raises(NotPackedError, match=r"log-likelihoods differ in packed rows|could not read packed rows"):
        score(make_side(model), model, make_items(1, 40))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attentions_take_the_mask(attention: str) -> None:
    model = tiny_llama()
    model.set_attn_implementation(attention)
    sequences = make_items(3, 40)
    found: dict[int, Likelihood] = {}
    for batch in PackedLikelihoods(Decoder("tiny", TransformersModel(model))).score(sequences, LIMIT):
        found |= batch
    for number, sequence in enumerate(sequences):
        assert found[number].total == pytest.approx(score_alone(model, sequence).total, abs=2e-5)


def count_read(model: Any, sequences: list[Scored]) -> tuple[int, int]:
    """Positions that the first layer and the head compute."""
    counts = {"layer": 0, "head": 0}
    scorer = PackedLikelihoods(Decoder("tiny", TransformersModel(model)))
    dict(next(iter(scorer.score(sequences[:1], 512))))  # finds the trunk

    def count(name: str, values: Any) -> None:
        counts[name] += values[0].shape[0] * values[0].shape[1]

    layer = model.model.layers[0].mlp.register_forward_pre_hook(lambda _m, values: count("layer", values))
    head = model.lm_head.register_forward_pre_hook(lambda _m, values: count("head", values))
    for _ in scorer.score(sequences, 512):
        pass
    layer.remove(), head.remove()
    return counts["layer"], counts["head"]


def test_contexts_are_computed_once_and_logits_only_of_scored_tokens() -> None:
    rng = random.Random(0)
    model = tiny_llama(max_position_embeddings=512)
    sequences = []
    for _ in range(10):
        context = tuple(rng.randrange(VOCABULARY) for _ in range(150))
        sequences += [Scored(context, (choice, *(rng.randrange(VOCABULARY) for _ in range(4)))) for choice in range(4)]
    layer, head = count_read(model, sequences)
    assert 10 * (150 + 4 * 4) <= layer <= 10 * (150 + 4 * 4) * 1.06  # lm-eval: 10 * 4 * 154
    assert head == 10 * (1 + 4 * 4)


@pytest.mark.parametrize("choices", [1, 2])
def test_only_rows_with_several_sequences_get_a_mask(choices: int) -> None:
    rng = random.Random(0)
    model = tiny_llama(max_position_embeddings=512)
    contexts = [tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(55, 58))) for _ in range(6)]
    sequences = [Scored(context, (choice, choice)) for context in contexts for choice in range(choices)]
    scorer = PackedLikelihoods(Decoder("tiny", TransformersModel(model)))
    dict(next(iter(scorer.score(sequences[:1], 512))))  # finds the trunk
    masks: list[bool] = []
    hook = model.model.register_forward_pre_hook(
        lambda _m, _v, named: masks.append(named.get("attention_mask") is not None), with_kwargs=True
    )
    found: dict[int, Likelihood] = {}
    for batch in scorer.score(sequences, 512):
        found |= batch
    hook.remove()
    assert masks[0] == (choices > 1)  # then the head alone is called, with states in place of the trunk
    for number, sequence in enumerate(sequences):
        assert found[number].total == pytest.approx(score_alone(model, sequence).total, abs=2e-5)


def test_the_last_feed_forward_reads_scored_tokens_alone() -> None:
    model = tiny_llama(max_position_embeddings=512)
    sequences = [Scored(tuple(range(1, 60)), (3, choice)) for choice in range(4)]
    scorer = PackedLikelihoods(Decoder("tiny", TransformersModel(model)))
    dict(next(iter(scorer.score(sequences[:1], 512))))  # finds the trunk
    counts: list[int] = []
    for block in model.model.layers[0], model.model.layers[-1]:
        block.mlp.gate_proj.register_forward_pre_hook(lambda _m, values: counts.append(values[0].shape[1]))
    for _ in scorer.score(sequences, 512):
        pass
    assert counts == [60, 2], "the last token of the context, and the first of the choices"


def test_scores_repeat_bit_for_bit_in_any_order() -> None:
    model, sequences = tiny_llama(), make_items(5, 40)
    order = list(range(len(sequences)))
    random.Random(0).shuffle(order)
    one = score(make_side(model), model, sequences)
    other = score(make_side(model), model, [sequences[number] for number in order])
    assert [one[number] for number in order] == other


def test_a_broken_model_is_not_packed() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    with pytest.raises(NotPackedError):
        score(make_side(model), model, make_items(1, 20))

"""Texts that a model writes for a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import BackendError
from harness.testing.models import random_documents, tiny_gpt2, tiny_llama
from harness.training import writing
from harness.training.examples import Example
from harness.training.writing import write_texts


def model(**config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        return tiny_llama(initializer_range=0.15, **config)


def ids_of(texts: list[Example]) -> list[list[int]]:
    return [each.ids.tolist() for each in texts]


PROMPTS = [*random_documents(3, 6, 1), *random_documents(4, 9, 2), random_documents(1, 6, 3)[0]]


def test_the_most_probable_tokens_are_those_of_whole_texts() -> None:
    for made in (model(eos_token_id=None), tiny_gpt2(initializer_range=0.15, eos_token_id=None)):
        (found,) = write_texts("made", made, [PROMPTS[0]], 8, 0.0, 0)
        ids = PROMPTS[0]
        for _ in range(8):
            with torch.no_grad():
                logits: Tensor = made(ids[None], use_cache=False).logits
            ids = torch.cat([ids, logits[0, -1].argmax()[None]])
        assert torch.equal(found.ids, ids)
        assert found.scored_from == 6


def test_prompts_stay_in_their_order_and_only_what_follows_is_learned() -> None:
    written = write_texts("made", model(), PROMPTS, 5, 1.0, 3)
    for prompt, text in zip(PROMPTS, written, strict=True):
        assert torch.equal(text.ids[: len(prompt)], prompt)
        assert text.scored_from == len(prompt)
        assert 1 <= text.scored <= 5


def test_the_seed_decides_and_the_process_keeps_its_random_numbers() -> None:
    made = model()
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    first = write_texts("made", made, PROMPTS, 12, 1.0, 3)
    assert torch.equal(torch.rand(2), wanted)
    torch.manual_seed(99)
    assert ids_of(write_texts("made", made, PROMPTS, 12, 1.0, 3)) == ids_of(first)
    assert ids_of(write_texts("made", made, PROMPTS, 12, 1.0, 4)) != ids_of(first)


def test_texts_are_drawn_with_the_probabilities_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of 3,000 draws of one token against the softmax: all within 5 standard errors."""
    monkeypatch.setattr(writing, "TOGETHER", 3000)
    made = model(eos_token_id=None)
    with torch.no_grad():
        chances = (made(PROMPTS[0][None], use_cache=False).logits[0, -1].double() / 2).softmax(-1)
    written = write_texts("made", made, [PROMPTS[0]] * 3000, 1, 2.0, 0)
    counts = torch.bincount(torch.tensor([int(each.ids[-1]) for each in written]), minlength=len(chances)) / 3000
    errors = (chances * (1 - chances) / 3000).sqrt()
    assert ((counts - chances).abs() <= 5 * errors + 1e-3).all()


def test_a_text_ends_with_the_end_token_and_that_is_learned() -> None:
    made = model(eos_token_id=None)
    (free,) = write_texts("made", made, [PROMPTS[0]], 8, 0.0, 0)
    made.generation_config.eos_token_id = int(free.ids[8])
    (ended,) = write_texts("made", made, [PROMPTS[0]], 8, 0.0, 0)
    first = free.ids[6:].tolist().index(int(free.ids[8])) + 7
    assert torch.equal(ended.ids, free.ids[:first])


def test_sampling_defaults_of_a_checkpoint_do_not_matter() -> None:
    made = model()
    plain = write_texts("made", made, PROMPTS, 6, 1.0, 0)
    made.generation_config.top_k = 1
    made.generation_config.repetition_penalty = 3.0
    assert ids_of(write_texts("made", made, PROMPTS, 6, 1.0, 0)) == ids_of(plain)
    assert made.generation_config.top_k == 1


def test_texts_longer_than_the_context_are_refused() -> None:
    with pytest.raises(BackendError, match=r"up to 60 tokens after a prompt of 9, and has 64 positions"):
        write_texts("made", model(), PROMPTS, 60, 1.0, 0)


def test_a_model_that_is_not_finite_is_named() -> None:
    made = model()
    with torch.no_grad():
        made.model.norm.weight.fill_(float("nan"))
    with pytest.raises(BackendError, match="the teacher could not write a text"):
        write_texts("the teacher", made, PROMPTS, 4, 1.0, 0)

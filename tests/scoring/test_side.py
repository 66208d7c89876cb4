"""Sides of a comparison as backends make them: which are scored in packed rows, and which must not be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from harness.backends import Backend
from harness.plugins import load
from harness.scoring.decoding import GreedyDecoder
from harness.scoring.packing import Scored, Tokens
from harness.scoring.side import NotPackedError, PackedSide, Prompt
from harness.testing.models import VOCABULARY, tiny_llama
from harness.testing.trials import as_variant

LIMIT = 64
PACKED: dict[str, dict[str, Any]] = {
    "round_to_nearest": {"bits": 4},
    "activations": {"bits": 8},
}
NOT_PACKED: dict[str, tuple[dict[str, Any], str]] = {
    "activations": ({"bits": 8, "granularity": "tensor"}, "with a scale that all tokens of a call share"),
    "kv_cache": ({"bits": 4, "residual": 0, "group_size": 8}, "its simulated KV cache"),
    "llm_int8": ({}, "columns that are chosen over all tokens of a call"),
}


def make_side(backend: str, settings: dict[str, Any]) -> tuple[PackedSide, Any]:
    step: Any = load(Backend, backend)
    made = as_variant(step(**settings), tiny_llama(), ())
    return PackedSide(made, 4), made.model


def draw(rng: random.Random, count: int) -> Tokens:
    return tuple(rng.randrange(1, VOCABULARY) for _ in range(count))


def make_sequences() -> list[Scored]:
    rng = random.Random(0)
    contexts = [draw(rng, rng.randint(4, 30)) for _ in range(5)]
    return [Scored(context, draw(rng, rng.randint(1, 5))) for context in contexts for _ in range(3)]


@torch.no_grad()
def score_alone(model: Any, sequence: Scored) -> tuple[float, bool]:
    ids = torch.tensor([[*sequence.context, *sequence.continuation]])
    logp = torch.log_softmax(model(ids).logits[0, -len(sequence.continuation) - 1 : -1], -1)
    wanted = torch.tensor(sequence.continuation)
    return float(logp[range(len(wanted)), wanted].sum()), bool((logp.argmax(-1) == wanted).all())


@torch.no_grad()
def write_alone(model: Any, prompt: Prompt, count: int) -> Tokens:
    ids = list(prompt.ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt.ids) :])


@pytest.mark.parametrize("backend", PACKED)
def test_variants_whose_tokens_depend_on_themselves_alone_are_packed(backend: str) -> None:
    side, model = make_side(backend, PACKED[backend])
    sequences = make_sequences()
    expected = [score_alone(model, sequence) for sequence in sequences]
    found = side.score(sequences, LIMIT, None, lambda numbers: [expected[number] for number in numbers])
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)
    prompts = [Prompt(str(number), sequence.context) for number, sequence in enumerate(sequences)]
    texts = [write_alone(model, prompt, 6) for prompt in prompts]
    written = side.write(prompts, 6, lambda ids: False, lambda numbers: [texts[number] for number in numbers])
    assert [tuple(each.ids) for each in written] == texts


@pytest.mark.parametrize("backend", NOT_PACKED)
def test_variants_whose_tokens_depend_on_the_call_are_not(backend: str) -> None:
    settings, reason = NOT_PACKED[backend]
    side, _ = make_side(backend, settings)
    with pytest.raises(NotPackedError, match=reason):
        side.score(make_sequences(), LIMIT, None, lambda numbers: [])
    with pytest.raises(NotPackedError, match=reason):
        side.write([Prompt("a", (1, 2, 3))], 4, lambda ids: False, lambda numbers: [])


def test_an_answer_of_the_loop_that_differs_is_believed() -> None:
    side, model = make_side("round_to_nearest", {"bits": 8})
    sequences = make_sequences()
    asked: list[int] = []

    def plain(numbers: Sequence[int]) -> list[tuple[float, bool]]:
        asked.extend(numbers)
        answers = [score_alone(model, sequences[number]) for number in numbers]
        return [(total - 0.001 * (place == 1), greedy) for place, (total, greedy) in enumerate(answers)]

    with pytest.raises(NotPackedError, match=r"1 of \d+ log-likelihoods differ in packed rows, by up to 0\.001 nats"):
        side.score(sequences, LIMIT, None, plain)
    assert len(asked) > 1


def test_what_a_model_raises_in_packed_rows_leaves_the_task_to_the_loop() -> None:
    side, model = make_side("round_to_nearest", {"bits": 8})

    def fail(*_: Any) -> None:
        raise RuntimeError("no room")

    hook = model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(NotPackedError, match=r"could not read packed rows"):
        side.score(make_sequences(), LIMIT, None, lambda numbers: [])
    with pytest.raises(NotPackedError, match=r"its cache could not be shared \(RuntimeError\)"):
        side.write([Prompt("a", (1, 2, 3))], 4, lambda ids: False, lambda numbers: [])
    hook.remove()


def make_prompts(count: int = 12) -> list[Prompt]:
    rng = random.Random(1)
    return [Prompt(str(number), draw(rng, rng.randint(3, 12))) for number in range(count)]


class TestComparedTexts:
    """Texts of 1 to 12 tokens, of which the loop is asked for few."""

    @pytest.fixture(autouse=True)
    def _make(self) -> None:
        self.side, self.model = make_side("round_to_nearest", {"bits": 8})
        self.prompts = make_prompts()
        self.lengths = {write_alone(self.model, prompt, 12): number + 1 for number, prompt in enumerate(self.prompts)}
        self.asked: list[int] = []

    def ended(self, ids: Sequence[int]) -> bool:
        return any(text[: len(ids)] == tuple(ids) and len(ids) == length for text, length in self.lengths.items())

    def loop(self, numbers: Sequence[int]) -> list[Tokens]:
        self.asked.extend(numbers)
        return [write_alone(self.model, self.prompts[number], 12) for number in numbers]

    def test_the_loop_writes_the_shortest_and_whole_passes_read_the_longest(self) -> None:
        written = self.side.write(self.prompts, 12, self.ended, self.loop)
        lengths = [len(each.ids) for each in written]
        assert self.asked == sorted(range(12), key=lambda number: (lengths[number], number))[:4]
        assert max(lengths[number] for number in self.asked) < max(lengths)

    @pytest.mark.parametrize("place", [0, 5])
    def test_a_long_text_that_is_not_greedy_is_left_to_the_loop_and_told(
        self, place: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = GreedyDecoder.write

        def write_wrong(decoder: GreedyDecoder, *arguments: Any) -> Any:
            written = write(decoder, *arguments)
            longest = max(written, key=lambda each: len(each.ids))
            longest.ids[place] = (longest.ids[place] + 1) % VOCABULARY
            return written

        monkeypatch.setattr(GreedyDecoder, "write", write_wrong)
        with pytest.raises(NotPackedError, match="a text of its shared cache is not the one that it writes alone"):
            self.side.write(self.prompts, 12, self.ended, self.loop)
        assert len(self.asked) == 5

    def test_where_whole_passes_tell_nothing_the_loop_writes_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> Any:
            raise RuntimeError("no room")

        monkeypatch.setattr("harness.scoring.likelihoods.PackedLikelihoods.score", fail)
        self.side.write(self.prompts, 12, self.ended, self.loop)
        assert len(self.asked) == 8

    def test_of_even_texts_the_loop_writes_the_longest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("harness.scoring.likelihoods.PackedLikelihoods.score", None)
        written = self.side.write(self.prompts, 12, lambda ids: len(ids) == 3, self.loop)
        assert {len(each.ids) for each in written} == {3}
        assert self.asked == [8, 9, 10, 11]

"""Texts on which objectives are computed: gathered from both models, remembered, drawn beside the training texts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import BackendError
from harness.testing.models import random_documents, tiny_llama, tiny_tokenizer
from harness.testing.trials import training_for
from harness.training import writing
from harness.training.examples import Batch, Example, make_batch
from harness.training.objectives import OnPolicy, Preference, Sequence, Traces
from harness.training.objectives._given import Given, Source
from harness.training.objectives._reading import Reader
from harness.training.objectives._terms import log_likelihoods
from harness.training.questions import Question, Questions

SHORT: dict[str, Any] = {"prompt_tokens": 6, "new_tokens": 5}


def given(cache: Path | None = None, **changes: Any) -> Given:
    with torch.random.fork_rng(devices=[]):
        teacher = tiny_llama(initializer_range=0.15, num_hidden_layers=3, eos_token_id=None)
        student = tiny_llama(initializer_range=0.15, seed=5)
    training = training_for(teacher)
    training.cache, training.tokenizer = cache, tiny_tokenizer()
    return Given("distill", student, tiny_tokenizer(), training, **({"same_tokens": True} | changes))


def ids_of(examples: Any) -> list[list[int]]:
    return [each.ids.tolist() for each in examples]


def test_the_teacher_continues_every_text() -> None:
    made = given()
    source = Sequence(**SHORT).gather(made)
    assert (len(source.examples), len(source.held_out)) == (16, 8)
    for text, example in zip(made.training.texts, source.examples, strict=True):
        assert torch.equal(example.ids[:6], text[:6])
        assert example.scored == 5
    greedy = Sequence(**SHORT, sampling_temperature=0).gather(made)
    wanted = made.write([text[:6] for text in made.training.texts], 5, 0.0, 0)
    assert ids_of(greedy.examples) == ids_of(wanted)


def test_written_texts_are_remembered_by_all_on_which_they_depend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sequence(**SHORT).gather(given(tmp_path))
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(writing, "continue_batch", None)
    again = given(tmp_path)
    second = Sequence(**SHORT, weight=3.0).gather(again)
    assert ids_of(second.examples) == ids_of(first.examples)
    assert ids_of(second.held_out) == ids_of(first.held_out)
    assert [each.scored_from for each in second.examples] == [each.scored_from for each in first.examples]
    assert path.name.startswith(again.training.used[0])
    changed = given(tmp_path)
    changed.training.spec = changed.training.spec.model_copy(update={"seed": 1})
    others = [(Sequence(prompt_tokens=6, new_tokens=4), given(tmp_path)), (Sequence(**SHORT), changed)]
    other = given(tmp_path)
    other.training.texts = [*other.training.texts[1:], other.training.texts[0]]
    for objective, where in [*others, (Sequence(**SHORT), other)]:
        with pytest.raises(TypeError):
            objective.gather(where)


def test_pairs_are_ranked_by_the_teacher() -> None:
    made = given()
    source = Preference(**SHORT, teacher_samples=2, student_samples=2).gather(made)
    assert source.together == 2
    assert len(source.examples) == 32
    totals = made.likelihoods(made.training.teacher, source.examples)
    means = (totals / torch.tensor([each.scored for each in source.examples])).unflatten(0, (-1, 2))
    assert (means[:, 0] > means[:, 1]).all()
    for preferred, other in zip(source.examples[::2], source.examples[1::2], strict=True):
        assert torch.equal(preferred.ids[:6], other.ids[:6])
    assert source.before is not None
    torch.testing.assert_close(source.before, made.likelihoods(made.student, source.examples))
    drawn = make_batch(source.examples, [6, 7, 2, 3])
    with torch.no_grad():
        wanted = log_likelihoods(Reader("student", made.student).read(drawn), drawn)
    found = source.find_before(drawn)
    assert found is not None
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_equal_candidates_are_nothing_to_prefer() -> None:
    made = given()
    objective = Preference(**SHORT, sampling_temperature=0, teacher_samples=2, student_samples=0)
    with pytest.raises(BackendError, match=r"0 and 0 gave two different candidates.*sampling_temperature"):
        objective.gather(made)


def questions(accept: Any, count: int = 30) -> Questions:
    asked = tuple(Question("Ask " + "abcdefgh"[number % 8] * 3, accept) for number in range(count))
    return Questions("made", "train", asked, until=("a",), new_tokens=6)


def test_only_accepted_answers_are_learned_up_to_what_ends_them() -> None:
    made = given()
    seen: list[str] = []

    def accept(answer: str) -> bool:
        seen.append(answer)
        return len(answer.split()) % 2 == 0

    made.training.ask = lambda task, include, most: questions(accept, most)
    source = Traces(task="made", questions=30, samples=3).gather(made)
    learned = [*source.examples, *source.held_out]
    assert 0 < len(learned) < 90
    assert all("a" not in answer for answer in seen)
    for example in learned:
        text = made.decode(example.ids[example.scored_from :])
        assert len(text.partition("a")[0].split()) % 2 == 0
        # What ends the answer is learned, and nothing behind it.
        assert "a" not in text or text.endswith("a")
        assert made.decode(example.ids[: example.scored_from]).startswith("A s k")
    (note,) = source.notes
    assert f"{len(learned)} different answers" in note
    assert "90 drawn" in note


def test_an_answer_that_was_given_twice_counts_once() -> None:
    made = given()
    made.training.ask = lambda task, include, most: questions(lambda answer: True, 10)
    source = Traces(task="made", samples=4, sampling_temperature=0).gather(made)
    assert len(source.examples) + len(source.held_out) == 10


def test_the_task_is_asked_again_about_answers_that_are_remembered(tmp_path: Path) -> None:
    accepted = []
    for right in ("a", "b"):
        made = given(tmp_path)
        made.training.ask = lambda task, include, most, right=right: questions(
            lambda answer: sum(map(ord, answer)) % 2 == (right == "a"), most
        )
        source = Traces(task="made", questions=20).gather(made)
        accepted.append(ids_of([*source.examples, *source.held_out]))
        assert len(list(tmp_path.iterdir())) == 1
    assert accepted[0]
    assert accepted[1]
    assert not any(each in accepted[1] for each in accepted[0])


def test_a_teacher_that_is_never_right_teaches_nothing() -> None:
    made = given()
    made.training.ask = lambda task, include, most: questions(lambda answer: False, 10)
    with pytest.raises(BackendError, match=r"made accepts 0 of 40 answers.*raise questions or samples"):
        Traces(task="made").gather(made)


def batch_of(number: int, count: int, held_out: bool = False) -> Batch:
    texts = [Example(ids) for ids in random_documents(count, 8, 1)]
    return make_batch(texts, range(count), number=number, held_out=held_out)


def test_other_texts_are_all_seen_before_one_returns() -> None:
    texts = [Example(ids) for ids in random_documents(6, 8, 4)]
    source = Source(texts, texts[:2])
    places = [place for step in range(3) for place in source.draw(batch_of(4 * step, 4), 7).places]
    assert sorted(places[:6]) == sorted(places[6:]) == list(range(6))
    assert places[:6] != list(range(6))
    # A batch that goes through in parts draws the same texts.
    parts = [*source.draw(batch_of(4, 1), 7).places, *source.draw(batch_of(5, 3), 7).places]
    assert tuple(parts) == source.draw(batch_of(4, 4), 7).places
    assert source.draw(batch_of(1, 3, held_out=True), 7).places == (1, 0, 1)


def test_pairs_stay_together() -> None:
    texts = [Example(ids) for ids in random_documents(8, 8, 4)]
    drawn = Source(texts, texts, together=2).draw(batch_of(0, 3), 7)
    assert len(drawn.places) == 6
    assert all(second == first + 1 and first % 2 == 0 for first, second in zip(*[iter(drawn.places)] * 2, strict=True))


def test_the_student_continues_prompts_as_it_is_now() -> None:
    made = given()
    source = OnPolicy(**SHORT).gather(made)
    assert source.write is not None
    drawn = source.draw(batch_of(0, 4), 0)
    torch.manual_seed(1)
    written = source.write(made.student, drawn)
    assert (written.scored.sum(1) <= 5).all()
    assert torch.equal(written.ids[:, :6], drawn.ids)
    assert not written.scored[:, :6].any()
    torch.manual_seed(1)
    assert torch.equal(source.write(made.student, drawn).ids, written.ids)
    changed = copy.deepcopy(made.student)
    with torch.no_grad():
        changed.get_output_embeddings().weight.mul_(-1)
    torch.manual_seed(1)
    assert not torch.equal(source.write(changed, drawn).ids, written.ids)


class Upper:
    """A tokenizer of one id for each letter, in another order, and with an end."""

    bos_token_id, eos_token_id = 90, 91

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 80 for letter in text]}


def test_texts_for_another_tokenizer_keep_their_prompt_apart() -> None:
    made = given(same_tokens=False)
    object.__setattr__(made, "tokenizer", Upper())
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([0, *tokenizer("hello", add_special_tokens=False)["input_ids"], 0])
    (found,) = made.translate([Example(ids, 4)])
    # BOS, the three letters of the prompt, the two that are learned, and the end; this tokenizer decodes with spaces.
    assert found.ids.tolist() == [90, *(ord(letter) % 80 for letter in "h e l" + "l o"), 91]
    assert found.scored_from == 6
    assert made.texts.examples[0].ids[0] == 90

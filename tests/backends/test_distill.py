"""Distillation on whole models: what becomes of the student, what is mixed, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from harness.backends import Compressed, Materials
from harness.backends.distill import Distill
from harness.backends.gptq import Gptq
from harness.errors import BackendError
from harness.models.identity import weights_sha256
from harness.modules.layer_pairs import block_numbers
from harness.records.training import HELD_OUT, HELD_OUT_KL, HELD_OUT_NLL, TRAIN, Fitted
from harness.testing.models import random_documents
from harness.testing.trials import as_variant, training_for
from harness.training.data import Training
from harness.training.questions import Question, Questions
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

FAST: dict[str, Any] = {"batch": 8, "learning_rate": 2e-3, "evaluations": 2}
SHORT: dict[str, Any] = {"prompt_tokens": 6, "new_tokens": 6}
EVERY: tuple[dict[str, Any], ...] = (
    {"objective": "logit", "alpha": 0.5, "temperature": 2.0},
    {"objective": "feature"},
    {"objective": "feature", "match": "values"},
    {"objective": "sequence", **SHORT},
    {"objective": "preference", **SHORT},
    {"objective": "traces", "task": "made", "questions": 20},
    {"objective": "on_policy", **SHORT},
)


class KilledError(Exception):
    """Stands for the death of the process."""


def make(kind: str) -> PreTrainedModel:
    """A Qwen 3 or Mixtral of four layers."""
    classes: dict[str, tuple[Any, Any]] = {
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
        "mixtral": (MixtralForCausalLM, partial(MixtralConfig, num_local_experts=4)),
    }
    model, config = classes[kind]
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cast(PreTrainedModel, model(config(**sizes, num_attention_heads=4, num_key_value_heads=2)))


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.eval().requires_grad_(False)
    return model


def llama(**config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        return frozen(tiny_llama(**{"tied": True, "initializer_range": 0.15, "num_hidden_layers": 4, **config}))


def ask(least: int, task: str, include: Sequence[str], most: int) -> Questions:
    """Questions to which every answer of more than ``least`` characters is right."""
    asked = tuple(Question("Ask " + "abcdefgh"[number % 8], lambda answer: len(answer) > least) for number in range(20))
    return Questions(task, "train", asked[:most], ("a",), 6)


def material(teacher: PreTrainedModel, steps: int, cache: Path | None = None) -> Training:
    training = training_for(teacher, steps)
    training.tokenizer, training.cache, training.save_seconds = tiny_tokenizer(), cache, 0.0
    training.ask = partial(ask, 6)
    return training


def made(**fields: Any) -> Distill:
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Distill.model_validate({"student": {"layers": "halve"}, **FAST, **lists})


def distill(
    teacher: PreTrainedModel, steps: int = 6, cache: Path | None = None, tokenizer: Any = None, **fields: Any
) -> tuple[Compressed, Training]:
    training = material(teacher, steps, cache)
    step = made(**fields)
    student = copy.deepcopy(teacher)
    return step.apply(student, tokenizer or tiny_tokenizer(), Materials(training=training)), training


def only_fit(training: Training) -> Fitted:
    (fitted,) = training.fits
    return fitted


def last(training: Training, series: str) -> float:
    found = only_fit(training).last(series)
    assert found is not None
    return found


def test_a_student_of_half_the_layers_comes_closer_to_its_teacher() -> None:
    teacher = llama()
    before = weights_sha256(teacher)
    done, training = distill(teacher, steps=40)
    fitted = only_fit(training)
    assert list(block_numbers(done.model)) == ["model.layers.0", "model.layers.1"]
    assert done.layers == (0, 2)
    assert done.remade
    assert last(training, HELD_OUT_KL) < 0.7 * (fitted.first(HELD_OUT_KL) or 0)
    assert weights_sha256(teacher) == before
    assert not any(each.requires_grad for each in done.model.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    done, training = distill(llama(), student=None, learning_rate=1e-9)
    assert abs(only_fit(training).first(HELD_OUT) or 0) < 1e-6
    assert done.layers is None
    assert not done.remade


def test_hard_labels_alone_lower_the_loss_of_the_texts() -> None:
    _, training = distill(llama(), steps=30, objectives=[{"objective": "logit", "alpha": 1.0}])
    assert last(training, HELD_OUT_NLL) < (only_fit(training).first(HELD_OUT_NLL) or 0)
    assert last(training, HELD_OUT) == pytest.approx(last(training, HELD_OUT_NLL), rel=1e-5)


@pytest.mark.parametrize("objective", EVERY, ids=lambda each: each["objective"] + each.get("match", ""))
def test_every_objective_alone_is_learned(objective: dict[str, Any]) -> None:
    _, training = distill(llama(), steps=30, objectives=[objective])
    losses = [each.value for each in only_fit(training).curves if each.series == TRAIN]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_all_objectives_mix_by_weight() -> None:
    doubled = [{**each, "weight": 2.0} for each in EVERY]
    curves = []
    for objectives in (list(EVERY), doubled):
        _, training = distill(llama(), steps=1, objectives=objectives)
        curves.append({each.series: each.value for each in only_fit(training).curves if each.step == 1})
    once, twice = curves
    names = {
        "logit.hard",
        "logit.soft",
        "feature.hidden",
        "feature.values",
        "sequence",
        "preference",
        "traces",
        "on_policy",
    }
    assert {name.removeprefix("loss.") for name in once if name.startswith("loss.")} == names
    for name in names:
        assert twice[f"loss.{name}"] == pytest.approx(2 * once[f"loss.{name}"], rel=1e-5)
    assert once["loss"] == pytest.approx(sum(once[f"loss.{name}"] for name in names), rel=1e-5)


def test_a_killed_training_continues_to_the_same_bytes(tmp_path: Path) -> None:
    teacher, objectives = llama(), list(EVERY)
    whole, _ = distill(teacher, 5, objectives=objectives)
    step = made(objectives=objectives)

    from harness.training import loop

    real, calls = loop.Loop._step, 0

    def die_in_the_fourth(self: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KilledError
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_step", die_in_the_fourth)
        with pytest.raises(KilledError):
            step.apply(copy.deepcopy(teacher), tiny_tokenizer(), Materials(training=material(teacher, 5, tmp_path)))
    resumed, training = distill(teacher, 5, tmp_path, objectives=objectives)
    assert weights_sha256(resumed.model) == weights_sha256(whole.model)
    taken, again = distill(teacher, 5, tmp_path, objectives=objectives)
    assert only_fit(again).cached
    assert not only_fit(training).cached
    assert weights_sha256(taken.model) == weights_sha256(whole.model)


def test_other_answers_of_a_task_are_another_training(tmp_path: Path) -> None:
    teacher, keys = llama(), []
    for least in (0, 6):
        training = material(teacher, 1, tmp_path)
        training.ask = partial(ask, least)
        step = made(objectives=[{"objective": "traces", "task": "made"}])
        step.apply(copy.deepcopy(teacher), tiny_tokenizer(), Materials(training=training))
        assert not only_fit(training).cached
        keys.append(training.used[-1])
    assert keys[0] != keys[1]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "mixtral"])
def test_other_architectures_are_distilled_and_saved_as_what_they_are(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    teacher = frozen(tiny_gpt2(n_layer=4) if kind == "gpt2" else make(kind))
    objectives = [{"objective": "logit"}, {"objective": "feature"}, {"objective": "feature", "match": "attention"}]
    done, training = distill(teacher, steps=20, objectives=objectives)
    assert last(training, HELD_OUT) < (only_fit(training).first(HELD_OUT) or 0)
    done.model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    texts = torch.stack(random_documents(2, 20, 9))
    with torch.no_grad():
        both = [each(texts, use_cache=False).logits for each in (read, done.model)]
    assert torch.equal(*both)


def test_weights_are_rounded_to_the_dtype_that_they_had() -> None:
    teacher: Any = llama()
    teacher.to(torch.bfloat16)
    done, _ = distill(teacher)
    assert {each.dtype for each in done.model.parameters()} == {torch.bfloat16}
    assert weights_sha256(teacher) != weights_sha256(done.model)


def test_a_student_of_a_configuration_begins_at_random_and_learns(tmp_path: Path) -> None:
    config = llama(num_hidden_layers=1, hidden_size=32, intermediate_size=48, head_dim=8).config
    config.save_pretrained(tmp_path)
    teacher = llama()
    objectives = [{"objective": "logit"}, {"objective": "feature", "blocks": "last"}]
    fields: dict[str, Any] = {"objectives": objectives, "learning_rate": 1e-2}
    for path in (tmp_path, tmp_path / "config.json"):
        done, training = distill(teacher, steps=30, student={"config": str(path)}, **fields)
        assert done.layers is None
        assert done.remade
        assert done.model.config.hidden_size == 32
        assert last(training, HELD_OUT_KL) < 0.9 * (only_fit(training).first(HELD_OUT_KL) or 0)
    again, _ = distill(teacher, steps=30, student={"config": str(tmp_path)}, **fields)
    assert weights_sha256(again.model) == weights_sha256(done.model)


def test_a_configuration_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    config = llama().config
    config.vocab_size = 50
    config.save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=r"vocab_size 50, expected 96"):
        distill(llama(), student={"config": str(tmp_path)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(BackendError, match="is no configuration of transformers"):
        distill(llama(), student={"config": str(tmp_path)})


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(BackendError, match=r"student.layers: found layer 7, expected 0 to 3"):
        distill(llama(), student={"layers": (0, 7)})


def other_tokenizer() -> Any:
    """The same letters with other ids."""
    made = tiny_tokenizer()
    made.add_tokens(["zz"])
    return made


def test_another_tokenizer_is_refused_with_the_objectives_that_work() -> None:
    objectives = [{"objective": "logit"}, {"objective": "sequence", **SHORT}, {"objective": "on_policy", **SHORT}]
    with pytest.raises(BackendError, match=r"logit, on_policy compare.*sequence, traces, and logit with alpha: 1"):
        distill(llama(), tokenizer=other_tokenizer(), objectives=objectives)


def test_texts_can_be_learned_with_another_tokenizer() -> None:
    objectives = [{"objective": "logit", "alpha": 1.0}, {"objective": "sequence", **SHORT}]
    _, training = distill(llama(), 20, tokenizer=other_tokenizer(), objectives=objectives)
    assert last(training, HELD_OUT) < (only_fit(training).first(HELD_OUT) or 0)
    assert only_fit(training).last(HELD_OUT_KL) is None


def test_the_student_is_quantized_by_the_next_step_and_compared_layer_by_layer() -> None:
    reference = llama()
    step = Distill.model_validate({**FAST, "student": {"layers": (0, 3)}})
    variant = as_variant(step, reference, random_documents(8, 24, seed=1), after=[Gptq(bits=4, group_size=16)])
    assert variant.layers == (0, 3)
    assert variant.identity.parameters == sum(each.numel() for each in variant.model.parameters())
    compressed = [each.module for each in variant.identity.modules if each.compressed]
    assert len(compressed) == 2 * 7


def test_a_student_of_a_student_stands_for_the_layers_of_the_first() -> None:
    reference = llama(num_hidden_layers=6)
    first, second = (Distill.model_validate({**FAST, "student": {"layers": kept}}) for kept in ((0, 2, 3, 5), (1, 3)))
    assert as_variant(first, reference, (), after=[second]).layers == (2, 5)

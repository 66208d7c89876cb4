"""The loop that training steps share: the same bits always, whatever interrupts it, and nothing else touched."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from harness.errors import BackendError, DataError, TrainingError, WriteError
from harness.records.training import HELD_OUT, HELD_OUT_KL, HELD_OUT_NLL, TRAIN, Fitted
from harness.training import checkpoints
from harness.training.divergence import RISES, explain_divergence
from harness.training.examples import Example
from harness.training.fitting import fit
from harness.training.loop import Loop, Task, Trainable
from harness.training.settings import Optimization
from tests.helpers.trainings import bytes_of_weights, follow_teacher, learn_texts, task_of, teacher_model, training_of

FAST = Optimization(batch=4, learning_rate=1e-2, evaluations=4)


class Killed(BaseException):
    """Ends a training as a signal does: nothing catches it."""


def kill_at(step: int, loss: Any = learn_texts) -> Any:
    def counted(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
        if torch.is_grad_enabled() and batch.step == step:
            raise Killed
        found: Mapping[str, Tensor] = loss(student, teacher, batch)
        return found

    return counted


def whole(loss: Any = learn_texts, settings: Optimization = FAST, **fields: Any) -> tuple[str, Fitted]:
    model = teacher_model()
    task = task_of(model, loss, **fields)
    fitted = fit(task, settings, training_of(model))
    return bytes_of_weights(task.student), fitted


def test_a_training_lowers_its_loss_and_says_by_how_much() -> None:
    _, fitted = whole()
    losses = [point for point in fitted.curves if point.series == TRAIN]
    assert [point.step for point in losses] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert losses[-1].value < losses[0].value
    assert [point.step for point in fitted.curves if point.series == HELD_OUT] == [0, 2, 4, 6, 8]
    assert fitted.first(HELD_OUT_KL) == pytest.approx(0, abs=1e-6)
    assert fitted.first(HELD_OUT) == pytest.approx(fitted.first(HELD_OUT_NLL), rel=1e-6)
    assert (fitted.steps, fitted.kept, fitted.tokens) == (8, 8, 8 * 4 * 15)


def test_the_first_step_is_that_of_torch() -> None:
    """AdamW of torch on the mean loss of the whole batch, its gradient clipped to norm 1."""
    model = teacher_model()
    task, training = task_of(model), training_of(model, steps=1)
    fit(task, Optimization(batch=12, learning_rate=1e-2, warmup=0, weight_decay=0.1), training)
    expected = task_of(model).student.requires_grad_(True)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.1)
    order = np.random.default_rng([0, 0]).permutation(12)
    ids = torch.stack([training.texts[place] for place in order])
    logits = expected(input_ids=ids).logits[:, :-1]
    nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).backward()
    nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    optimizer.step()
    for found, wanted in zip(task.student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    first, again = whole(), whole()
    assert first == again
    model = teacher_model()
    task, training = task_of(model), training_of(model)
    training.spec = training.spec.model_copy(update={"seed": 1})
    fit(task, FAST, training)
    assert bytes_of_weights(task.student) != first[0]


def test_no_steps_change_nothing() -> None:
    model = teacher_model()
    task = task_of(model)
    fitted = fit(task, FAST, training_of(model), steps=0)
    assert bytes_of_weights(task.student) == bytes_of_weights(model)
    assert (fitted.steps, fitted.curves) == (0, ())


def test_the_reference_and_frozen_parameters_keep_their_bytes() -> None:
    model = teacher_model()
    before, task = bytes_of_weights(model), task_of(model, follow_teacher)
    name = next(iter(task.trainable))
    frozen = {key: each.parameter.clone() for key, each in task.trainable.items() if key != name}
    only = Task("made", task.student, {name: task.trainable[name]}, follow_teacher, {})
    fit(only, FAST, training_of(model))
    assert bytes_of_weights(model) == before
    assert all(torch.equal(frozen[key], dict(task.student.named_parameters())[key]) for key in frozen)
    assert not torch.equal(dict(model.named_parameters())[name], task.trainable[name].parameter)
    assert not any(each.requires_grad or each.grad is not None for each in task.student.parameters())
    assert not any(each.requires_grad or each.grad is not None for each in model.parameters())


def test_the_random_state_of_the_process_is_left_alone_and_not_read() -> None:
    def noisy(student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
        return {"nll": learn_texts(student, teacher, batch)["nll"] * (1 + 0.1 * torch.rand(()))}

    results = []
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
        results.append(whole(noisy)[0])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert (np.random.get_state()[1] == before[2]).all()  # type: ignore[index]
    assert results[0] == results[1]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("step", [0, 3, 7])
def test_a_killed_training_continues_to_the_same_bits(tmp_path: Path, step: int) -> None:
    expected, full = whole(follow_teacher)
    model = teacher_model()
    with pytest.raises(Killed):
        fit(task_of(model, kill_at(step, follow_teacher)), FAST, training_of(model, tmp_path, save_seconds=0))
    steps = []

    def watched(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
        steps.append(batch.step)
        return follow_teacher(student, teacher, batch)

    task = task_of(model, watched)
    fitted = fit(task, FAST, training_of(model, tmp_path, save_seconds=0))
    assert bytes_of_weights(task.student) == expected
    assert fitted == full
    assert min(steps) == step


def test_a_process_killed_by_the_system_continues_to_the_same_bits(tmp_path: Path) -> None:
    expected, _ = whole(follow_teacher)
    script = (
        "import time\nfrom pathlib import Path\nfrom tests.training.test_fitting import FAST\n"
        "from harness.training.fitting import fit\n"
        "from tests.helpers.trainings import follow_teacher, task_of, teacher_model, training_of\n"
        "def slow(*given):\n    time.sleep(0.2)\n    return follow_teacher(*given)\n"
        f"model, cache = teacher_model(), Path({str(tmp_path)!r})\n"
        "fit(task_of(model, slow), FAST, training_of(model, cache, save_seconds=0))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while not list(tmp_path.glob("*.state.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("*.done.safetensors"))
    model = teacher_model()
    task = task_of(model, follow_teacher)
    fit(task, FAST, training_of(model, tmp_path))
    assert bytes_of_weights(task.student) == expected


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    model = teacher_model()
    task = task_of(model)
    first = fit(task, FAST, training_of(model, tmp_path))
    again = task_of(model, kill_at(0))
    second = fit(again, FAST, training_of(model, tmp_path))
    assert bytes_of_weights(again.student) == bytes_of_weights(task.student)
    assert (second.cached, second.curves, second.kept) == (True, first.curves, first.kept)


@pytest.mark.parametrize("changed", ["settings", "texts", "reference", "student", "step", "environment"])
def test_a_finished_training_of_something_else_is_not_taken(tmp_path: Path, changed: str) -> None:
    model = teacher_model()
    fit(task_of(model), FAST, training_of(model, tmp_path))
    other = teacher_model(seed=1)
    settings = FAST.model_copy(update={"clip": 0.5}) if changed == "settings" else FAST
    documents = 11 if changed == "texts" else 12
    training = training_of(other if changed == "reference" else model, tmp_path, documents=documents)
    if changed == "environment":
        training.environment = {"torch": "another"}
    depends_on = {"bits": 4} if changed == "step" else {}
    given = task_of(other if changed == "student" else model, kill_at(0))
    with pytest.raises(Killed):
        fit(Task("made", given.student, given.trainable, given.loss, depends_on), settings, training)


def test_a_damaged_state_is_not_taken(tmp_path: Path) -> None:
    model = teacher_model()
    with pytest.raises(Killed):
        fit(task_of(model, kill_at(5)), FAST, training_of(model, tmp_path, save_seconds=0))
    (state,) = tmp_path.glob("*.state.safetensors")
    state.write_bytes(state.read_bytes()[:-100])
    task = task_of(model)
    fit(task, FAST, training_of(model, tmp_path))
    assert bytes_of_weights(task.student) == whole()[0]


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real, calls = teacher_model(), safetensors.torch.save_file, []

    def full(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(*given)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(WriteError, match=r"No space left.*continues") as error:
        fit(task_of(model), FAST, training_of(model, tmp_path, save_seconds=0))
    assert error.value.failure == "resources"
    monkeypatch.setattr(safetensors.torch, "save_file", real)
    (state,) = tmp_path.glob("*")
    known = checkpoints.read(state)
    assert known is not None
    assert known[1]["done"] == 3
    task = task_of(model)
    fit(task, FAST, training_of(model, tmp_path))
    assert bytes_of_weights(task.student) == whole()[0]


def test_files_of_other_trainings_are_removed_once_one_is_finished(tmp_path: Path) -> None:
    model = teacher_model()
    fit(task_of(model), FAST, training_of(model, tmp_path))
    training = training_of(model, tmp_path, steps=4)
    fit(task_of(model), FAST, training)
    fit(task_of(model), FAST.model_copy(update={"clip": 0.5}), training)
    assert sorted(path.name.partition(".")[0] for path in tmp_path.iterdir()) == sorted(training.used)


def test_out_of_memory_halves_the_parts_and_keeps_the_batch() -> None:
    seen: list[int] = []

    def narrow(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
        if len(batch.places) > (1 if torch.is_grad_enabled() else 2):
            raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 1 bytes")
        if torch.is_grad_enabled():
            seen.append(len(batch.places))
        return follow_teacher(student, teacher, batch)

    model = teacher_model()
    task = task_of(model, narrow)
    fitted = fit(task, FAST, training_of(model))
    expected = task_of(model, follow_teacher)
    fit(expected, FAST, training_of(model))
    assert (fitted.batch, fitted.part, fitted.tokens) == (4, 1, 8 * 4 * 15)
    assert seen == [1] * 32
    for found, wanted in zip(task.student.parameters(), expected.student.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4)


def test_parts_of_different_length_add_up_to_the_mean_over_tokens() -> None:
    """A document of 40 tokens weighs more than one of 5, in parts as in one batch."""
    model = teacher_model()
    examples = [Example(torch.arange(1, length + 1)) for length in (5, 40, 9, 21)]
    gradients = []
    for part in (4, 1):
        loop = Loop(task_of(model), FAST, model, examples, examples, 1, 0, part=part)
        for each in loop.task.trainable.values():
            each.parameter.requires_grad_(True)
        loop._add_gradients([0, 1, 2, 3])
        gradients.append(torch.cat([each.parameter.grad.flatten() for each in loop.task.trainable.values()]))  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_memory_that_is_too_small_for_one_document_is_an_error() -> None:
    def never(*_: Any) -> Mapping[str, Tensor]:
        if torch.is_grad_enabled():
            raise MemoryError
        return {"nll": torch.tensor(1.0)}

    with pytest.raises(MemoryError):
        whole(never)


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    def broken(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
        nll = learn_texts(student, teacher, batch)["nll"]
        return {"nll": nll * float("nan") if batch.step == 2 and torch.is_grad_enabled() else nll}

    with pytest.raises(TrainingError, match=r"step 3: the loss is nan.*learning_rate") as error:
        whole(broken)
    assert error.value.failure == "numerics"


def test_a_loss_that_rises_persistently_is_divergence() -> None:
    rising = iter(range(100))

    def worse(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
        nll = learn_texts(student, teacher, batch)["nll"]
        return {"nll": nll if torch.is_grad_enabled() else 0 * nll + next(rising)}

    with pytest.raises(TrainingError, match="rose 5 times in a row"):
        whole(worse, Optimization(batch=4, evaluations=8))


def test_divergence_is_a_rise_without_pause_above_the_beginning() -> None:
    assert not explain_divergence([1.0] + [2.0] * RISES)
    assert not explain_divergence([9.0, 1, 2, 3, 4, 5, 6])
    assert not explain_divergence([1.0, 2, 3, 2.5, 4, 5, 6])
    assert explain_divergence([1.0, 2, 3, 4, 5, 6])


def test_early_stop_keeps_the_best_step(tmp_path: Path) -> None:
    held_out = iter([5.0, 3.0, 4.0, 3.5, 3.2])
    kept: list[str] = []

    def wavy(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
        nll = learn_texts(student, teacher, batch)["nll"]
        if torch.is_grad_enabled():
            return {"nll": nll}
        kept.append(bytes_of_weights(student))
        return {"nll": 0 * nll + next(held_out)}

    model = teacher_model()
    task = task_of(model, wavy)
    settings = Optimization(batch=4, learning_rate=1e-2, evaluations=8, early_stop=3)
    fitted = fit(task, settings, training_of(model, tmp_path))
    assert (fitted.steps, fitted.kept, fitted.last(HELD_OUT)) == (4, 1, 3.0)
    assert bytes_of_weights(task.student) == kept[1]
    again = task_of(model, kill_at(0))
    assert fit(again, settings, training_of(model, tmp_path)).kept == 1
    assert bytes_of_weights(again.student) == kept[1]


def test_state_that_a_forward_pass_changes_is_kept_with_the_parameters(tmp_path: Path) -> None:
    def task(state: Tensor, kill: int = -1) -> Task:
        def averaging(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
            if torch.is_grad_enabled():
                state.mul_(0.5).add_(float(batch.ids.sum()))
            return learn_texts(student, teacher, batch)

        return task_of(teacher_model(), kill_at(kill, averaging), state={"mean": state})

    full, part = torch.zeros(1), torch.zeros(1)
    fit(task(full), FAST, training_of(teacher_model()))
    with pytest.raises(Killed):
        fit(task(part, kill=5), FAST, training_of(teacher_model(), tmp_path, save_seconds=0))
    part.zero_()
    fit(task(part), FAST, training_of(teacher_model(), tmp_path))
    assert torch.equal(full, part)


def test_memory_is_that_of_the_tensors() -> None:
    _, fitted = whole()
    found = {each.part: each for each in fitted.memory}
    size = sum(each.numel() for each in teacher_model().parameters())
    assert (found["trainable"].measured, found["gradients"].measured) == (4 * size, 4 * size)
    assert found["optimizer"].forecast == 8 * size
    # and a counter of 4 bytes for each tensor
    assert found["optimizer"].measured == 8 * size + 4 * len(list(teacher_model().parameters()))
    assert found["teacher"].measured == pytest.approx(4 * size, rel=0.01)
    activations = found["activations"]
    assert activations.forecast is not None
    assert activations.measured == pytest.approx(activations.forecast, rel=0.25)


def test_bad_input_is_refused() -> None:
    model = teacher_model()
    with pytest.raises(DataError, match="12 documents, expected at least the 16 of one batch"):
        fit(task_of(model), Optimization(batch=16), training_of(model))
    with pytest.raises(BackendError, match="no parameter is left to train"):
        fit(Task("made", model, {}, learn_texts, {}), FAST, training_of(model))
    packed = {"w": Trainable(nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))}
    with pytest.raises(BackendError, match=r"torch.bfloat16, expected float32.*packed"):
        fit(Task("made", model, packed, learn_texts, {}), FAST, training_of(model))
    broken = {"w": Trainable(nn.Parameter(torch.tensor([1.0, float("nan")])))}
    with pytest.raises(BackendError, match=r"made: w holds NaN or infinity"):
        fit(Task("made", model, broken, learn_texts, {}), FAST, training_of(model))


def test_a_prompt_is_read_and_not_learned() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def look(student: Any, teacher: Any, batch: Any) -> Mapping[str, Tensor]:
        rows = zip(batch.ids.tolist(), batch.scored.tolist(), strict=True)
        seen.extend((ids, [at for at, scored in enumerate(row) if scored]) for ids, row in rows)
        return learn_texts(student, teacher, batch)

    teacher = teacher_model()
    training = training_of(teacher, steps=1)
    training.prompts = [5] * len(training.texts) + [9] * len(training.held_out)
    fit(task_of(teacher, look), FAST, training)
    assert {tuple(scored) for _, scored in seen} == {tuple(range(5, 16)), tuple(range(9, 16))}

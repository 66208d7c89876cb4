"""Fits a task: continues it where a killed process stopped, and takes a finished one from its file.

key = hash of: student before, teacher, examples, settings, steps, seed, environment
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from harness.errors import BackendError
from harness.models.identity import config_sha256, weights_sha256
from harness.numerics.formats import is_finite
from harness.records.training import Fitted
from harness.training import checkpoints
from harness.training.data import Training
from harness.training.examples import examples_sha256
from harness.training.loop import TRAINED, Loop, Task
from harness.training.settings import Optimization

FORMAT = 1
"""Of the files, and of what the loop computes: a change of either makes earlier files those of another training."""


def fit(task: Task, settings: Optimization, training: Training, steps: int | None = None) -> Fitted:
    """Train ``task`` in place, and add what that left to ``training.fits``.

    The parameters end as those of the last step or, with ``early_stop``, the best one. steps: in place of those of the
    training data; 0 changes nothing. The same arguments give the same bytes on one machine, killed and continued or
    not. Raises DataError for fewer documents than a batch has, BackendError for parameters that cannot be trained,
    TrainingError for a training that diverges, and WriteError if a state cannot be written.
    """
    fitted = _fit(task, settings, training, steps)
    training.fits.append(fitted)
    return fitted


def _fit(task: Task, settings: Optimization, training: Training, steps: int | None) -> Fitted:
    _check_trainable(task)
    texts, held_out_texts = training.examples()
    examples = task.examples if task.examples is not None else texts
    held_out = task.held_out if task.held_out is not None else held_out_texts
    if steps is None:
        steps = training.steps(len(examples) // task.together, settings.batch)
    if steps == 0:
        return Fitted(task.name, 0, 0, settings.batch, settings.batch, 0)
    loop = Loop(task, settings, training.teacher, examples, held_out, steps, training.seed)
    if training.cache is None:
        return loop.run(lambda: None)
    key = _key(loop, training)
    training.used.append(key)
    done, state = (training.cache / f"{key}{end}" for end in (checkpoints.DONE, checkpoints.STATE))
    if (known := checkpoints.read(done)) is not None:
        loop.restore(*known)
        return replace(loop.fitted(), kept=known[1]["kept_at_end"], cached=True)
    if (known := checkpoints.read(state)) is not None:
        loop.restore(*known)
    fitted = loop.run(_save_now_and_then(lambda: checkpoints.save(state, loop.tensors(), loop.content()), training))
    content = loop.content() | {"optimizer": {}, "kept_at_end": fitted.kept}
    trained = {name: tensor for name, tensor in loop.tensors().items() if name.startswith(TRAINED)}
    checkpoints.save(done, trained, content)
    state.unlink(missing_ok=True)
    checkpoints.remove_others(training.cache, training.used)
    return fitted


def _save_now_and_then(save: Callable[[], None], training: Training) -> Callable[[], None]:
    last = time.monotonic()

    def after_step() -> None:
        nonlocal last
        if time.monotonic() - last >= training.save_seconds:
            save()
            last = time.monotonic()

    return after_step


def _key(loop: Loop, training: Training) -> str:
    task = loop.task
    content = {
        "format": FORMAT,
        "step": task.name,
        "depends_on": task.depends_on,
        "settings": loop.settings.model_dump(mode="json"),
        "student": weights_sha256(task.student),
        "config": config_sha256(task.student.config),
        "state": {name: _describe(tensor) for name, tensor in task.state.items()},
        "trainable": {
            name: [_describe(each.parameter), each.rate, each.decays] for name, each in task.trainable.items()
        },
        "together": [task.together, task.weigh_by, task.comparable],
        "teacher": training.teacher_sha256,
        "examples": [examples_sha256(loop.examples), examples_sha256(loop.held_out)],
        "steps": [loop.steps, loop.seed],
        "device": str(task.student.device),
        "environment": dict(training.environment),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _describe(tensor: Tensor) -> list[Any]:
    content = tensor.detach().cpu().contiguous().numpy().tobytes()
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(content).hexdigest()]


def _check_trainable(task: Task) -> None:
    if not task.trainable:
        raise BackendError(f"{task.name}: no parameter is left to train")
    for name, each in task.trainable.items():
        if str(each.parameter.dtype) != "torch.float32":
            raise BackendError(
                f"{task.name}: {name} is {each.parameter.dtype}, expected float32 while it is trained; packed weights "
                "cannot be trained: start from the checkpoint that they were made of"
            )
        if not is_finite(each.parameter.detach()):
            raise BackendError(f"{task.name}: {name} holds NaN or infinity, which no training mends")

"""Small trainings: a tiny model that learns a few texts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.models.identity import weights_sha256
from harness.records import TrainingSpec
from harness.testing.models import random_documents, tiny_llama
from harness.training.data import Training
from harness.training.examples import Batch
from harness.training.loop import Loss, Task, Trainable
from harness.training.losses import mean_kl, mean_nll, predict


def learn_texts(student: PreTrainedModel, _teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy alone."""
    return {"nll": mean_nll(batch.logits(student), batch.targets)}


def follow_teacher(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Half cross-entropy, half divergence from the teacher."""
    logits_NV = batch.logits(student)
    kl = mean_kl(predict(teacher, batch), logits_NV)
    return {"nll": 0.5 * mean_nll(logits_NV, batch.targets), "kl": 0.5 * kl}


def training_of(
    teacher: PreTrainedModel, cache: Path | None = None, documents: int = 12, steps: int = 8, **fields: Any
) -> Training:
    """Random texts of 16 tokens, of which a training takes ``steps`` batches."""
    made = random_documents(documents + 4, 16, seed=3)
    spec = TrainingSpec(data="made", steps=steps, documents=documents, held_out=4, tokens=16)
    hash_of_teacher = weights_sha256(teacher)
    return Training(spec, made[:documents], made[documents:], teacher, hash_of_teacher, cache=cache, **fields)


def teacher_model(seed: int = 0) -> PreTrainedModel:
    """A tiny Llama, frozen."""
    with torch.random.fork_rng(devices=[]):
        return tiny_llama(seed=seed, initializer_range=0.15).requires_grad_(False)


def task_of(model: PreTrainedModel, loss: Loss = learn_texts, **fields: Any) -> Task:
    """A copy of ``model`` of which every parameter is trained."""
    student = copy.deepcopy(model)
    trainable = {name: Trainable(each) for name, each in student.named_parameters()}
    return Task("made", student, trainable, loss, {}, **fields)


def bytes_of_weights(model: PreTrainedModel) -> str:
    """A hash of all weights."""
    return weights_sha256(model)

"""The loop that every training step shares: it moves the trainable parameters of a student, and nothing else.

    examples ─▶ batch of a step ─▶ parts that fit into memory ─▶ loss ─▶ gradients ─▶ clip ─▶ AdamW
                                                                                       │
    held-out examples ◀── evenly spaced evaluations ── curves ◀────────────────────────┘

A step depends on the seed and its own number, on the parameters, and on the optimizer's states, all of which a
checkpoint holds: a training that was killed continues to the same bits. Models stay in evaluation mode, so that dropout
is off; losses that draw random numbers find torch's generators seeded for their step, and the process gets back its
own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import DataError, TrainingError, is_out_of_memory
from harness.progress import track
from harness.records.training import HELD_OUT, HELD_OUT_KL, HELD_OUT_NLL, TRAIN, Fitted, Memory, Point
from harness.training.divergence import explain_divergence
from harness.training.examples import Batch, Example, make_batch, place_of_step
from harness.training.losses import mean_kl, mean_nll, predict
from harness.training.measuring import SavedTensors, list_memory, tensors_of
from harness.training.settings import Optimization

T = TypeVar("T")
Loss = Callable[[PreTrainedModel, PreTrainedModel, Batch], Mapping[str, Tensor]]
"""``(student, teacher, batch)`` ─▶ named losses, which are added up. Each is a mean over the scored tokens of the batch
(or over its examples, see ``Task.weigh_by``), already multiplied by its weight."""
Groups = list[dict[str, Any]]
TRAINED = "trained."
"""Before the names of trained tensors, in checkpoints."""


@dataclass(frozen=True)
class Trainable:
    """A parameter to train, in float32. rate: multiplies the learning rate. decays: whether weight decay applies."""

    parameter: nn.Parameter
    rate: float = 1.0
    decays: bool = True


@dataclass(frozen=True)
class Task:
    """What a backend wants trained.

    student: changed in place, through ``trainable`` (by name) and ``state``: further tensors that the training changes,
    such as running averages. depends_on: settings of the backend, as plain data. examples, held_out: in place of the
    texts of the training data. together: examples that stay together in a batch (2 for pairs), each unit counted as
    one document. comparable: whether student and teacher read the same tokens, so that their divergence is defined.
    keeps: bytes that a forward pass keeps for the backward pass beside activations, for the forecast. make_optimizer:
    in place of torch's AdamW; moment_bits: of the moments that it keeps, for the forecast.
    """

    name: str
    student: PreTrainedModel
    trainable: Mapping[str, Trainable]
    loss: Loss
    depends_on: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    examples: Sequence[Example] | None = None
    held_out: Sequence[Example] | None = None
    together: int = 1
    weigh_by: Literal["tokens", "examples"] = "tokens"
    comparable: bool = True
    keeps: int = 0
    make_optimizer: Callable[[Groups], torch.optim.Optimizer] | None = None
    moment_bits: int = 32


@dataclass
class Loop:
    """The state of a training, and its steps. ``tensors`` and ``content`` are what a checkpoint holds."""

    task: Task
    settings: Optimization
    teacher: PreTrainedModel
    examples: Sequence[Example]
    held_out: Sequence[Example]
    steps: int
    seed: int
    done: int = 0
    part: int = 0
    tokens: int = 0
    kept: int = 0
    curves: list[Point] = field(default_factory=list)
    memory: tuple[Memory, ...] = ()
    best: dict[str, Tensor] = field(default_factory=dict)
    units: int = field(init=False)
    optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        units = len(self.examples) // self.task.together
        if units < self.settings.batch:
            raise DataError(
                f"training: {units} documents, expected at least the {self.settings.batch} of one batch; name more "
                f"documents, or write batch: {max(1, units)} for {self.task.name}"
            )
        if len(self.held_out) < self.task.together:
            raise DataError("training: no held-out document, expected at least one; write held_out: 16")
        self.units, self.part = units, self.part or self.settings.batch
        groups: Groups = [
            {"params": [each.parameter], "lr": 0.0, "weight_decay": self.settings.weight_decay * each.decays}
            for each in self.task.trainable.values()
        ]
        make = self.task.make_optimizer or torch.optim.AdamW
        self.optimizer = make(groups)

    def run(self, save: Callable[[], None]) -> Fitted:
        """All steps that are left; ``save`` is called after each. Raises TrainingError if the training diverges."""
        began, before = time.monotonic(), self.tokens
        with _prepared(self.task, self.teacher):
            if not self.curves:
                self._evaluate()
            left = range(self.done, self.steps)
            for _ in track(f"{self.task.name}: training", left, detail=lambda: self._say(began, before)):
                if self._has_stopped():
                    break
                self._step()
                if self.settings.is_evaluated(self.done, self.steps):
                    self._evaluate()
                save()
        if self.best:
            self._assign(self.best)
        return self.fitted()

    def fitted(self) -> Fitted:
        """What is known so far."""
        kept = self.kept if self.best else self.done
        numbers = (self.done, kept, self.settings.batch, self.part, self.tokens)
        return Fitted(self.task.name, *numbers, tuple(self.curves), self.memory)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor on which later steps depend, by name."""
        found = {f"{TRAINED}{name}": tensor for name, tensor in self._own().items()}
        found |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return found

    def content(self) -> dict[str, Any]:
        """Everything else on which they depend."""
        states = self.optimizer.state_dict()["state"]
        plain = {n: {k: v for k, v in state.items() if not isinstance(v, Tensor)} for n, state in states.items()}
        return {"fitted": self.fitted().to_json(), "done": self.done, "kept": self.kept, "optimizer": plain}

    def restore(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Continue from what a checkpoint holds."""
        known = Fitted.from_json(content["fitted"])
        self.done, self.kept, self.part, self.tokens = content["done"], content["kept"], known.part, known.tokens
        self.curves, self.memory = list(known.curves), known.memory
        self._assign(_under(TRAINED, tensors))
        self.best = _under("best.", tensors)
        state: dict[int, dict[str, Any]] = {int(n): dict(plain) for n, plain in content["optimizer"].items()}
        for name, tensor in _under("optimizer.", tensors).items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def _own(self) -> dict[str, Tensor]:
        return {name: each.parameter.detach() for name, each in self.task.trainable.items()} | dict(self.task.state)

    def _assign(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._own().items():
                tensor.copy_(values[name])

    def _step(self) -> None:
        """One optimizer step; smaller parts where memory runs out, with the gradients of the whole batch."""
        rate = self.settings.rate_at(self.done, self.steps)
        for group, each in zip(self.optimizer.param_groups, self.task.trainable.values(), strict=True):
            group["lr"] = rate * each.rate
        chosen = place_of_step(self.done, self.settings.batch, self.units, self.seed)
        losses, saved = self._fit_into_memory(lambda: self._add_gradients(chosen))
        self._apply(losses)
        if not self.memory:
            self._measure(saved, chosen)
        self.optimizer.zero_grad()

    def _fit_into_memory(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns, in parts of half the size wherever memory runs out."""
        before = {name: tensor.clone() for name, tensor in self.task.state.items()}
        while True:
            try:
                return compute()
            except Exception as error:
                if self.part == 1 or not is_out_of_memory(error):
                    raise
            self.part = -(-self.part // 2)
            self.optimizer.zero_grad()
            for name, tensor in self.task.state.items():
                tensor.copy_(before[name])
            if self.task.student.device.type == "cuda":
                torch.cuda.empty_cache()

    def _apply(self, losses: Mapping[str, float]) -> None:
        """Clip, move the parameters, and note the losses. Raises TrainingError for what is not finite."""
        parameters = [each.parameter for each in self.task.trainable.values()]
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        total = sum(losses.values())
        if not (torch.isfinite(norm) and abs(total) < float("inf")):
            raise self._diverged(f"step {self.done + 1}: the loss is {total:g} and the norm of the gradients {norm:g}")
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        self.optimizer.step()
        self.done += 1
        self.curves.append(Point(self.done, TRAIN, total))
        if len(losses) > 1:
            self.curves += [Point(self.done, f"{TRAIN}.{name}", value) for name, value in losses.items()]

    def _add_gradients(self, chosen: Sequence[int]) -> tuple[dict[str, float], int]:
        """Gradients of the loss of a whole batch: its named losses, and the bytes that the first part kept for them.

        chosen: its units. Bytes are counted in the first step of a training alone, because counting takes time.
        """
        saved = SavedTensors(() if self.memory else tensors_of(self.task.student))
        batches = list(self._parts(self.examples, chosen))
        sizes, losses = [self._size(batch) for batch in batches], dict[str, float]()
        for batch, size in zip(batches, sizes, strict=True):
            self._seed(batch.step)
            with nullcontext() if self.memory or losses else saved.counting():
                named = self.task.loss(self.task.student, self.teacher, batch)
            share = size / sum(sizes)
            total = torch.stack([value * share for value in named.values()]).sum()
            total.backward()
            for name, value in named.items():
                losses[name] = losses.get(name, 0.0) + float(value.detach()) * share
        self.tokens += sum(batch.tokens for batch in batches)
        return losses, saved.bytes

    def _parts(self, examples: Sequence[Example], chosen: Sequence[int]) -> Iterator[Batch]:
        device, together = self.task.student.device, self.task.together
        for start in range(0, len(chosen), self.part):
            units = chosen[start : start + self.part]
            places = [unit * together + number for unit in units for number in range(together)]
            held_out = examples is self.held_out
            first = start if held_out else self.done * self.settings.batch + start
            yield make_batch(examples, places, device, self.done, first, held_out)

    def _size(self, batch: Batch) -> int:
        return batch.tokens if self.task.weigh_by == "tokens" else len(batch.places)

    def _evaluate(self) -> None:
        """Note the held-out losses. Raises TrainingError if they are not finite or rise persistently."""
        totals = self._fit_into_memory(self._measure_held_out)
        self.curves += [Point(self.done, name, value) for name, value in totals.items()]
        history = [point.value for point in self.curves if point.series == HELD_OUT]
        if not abs(history[-1]) < float("inf"):
            raise self._diverged(f"step {self.done}: the held-out loss is {history[-1]:g}")
        if self.settings.early_stop is not None:
            if history[-1] == min(history):
                self.kept, self.best = self.done, {name: tensor.clone() for name, tensor in self._own().items()}
        elif why := explain_divergence(history):
            raise self._diverged(f"step {self.done}: {why}")

    @torch.no_grad()
    def _measure_held_out(self) -> dict[str, float]:
        """Loss, NLL and, where it is defined, KL(reference ‖ student), means over all held-out tokens."""
        totals: dict[str, float] = {}
        units = range(len(self.held_out) // self.task.together)
        batches = list(self._parts(self.held_out, units))
        scored = sum(batch.tokens for batch in batches)
        sizes = sum(map(self._size, batches))
        for batch in batches:
            self._seed(batch.step)
            loss = sum(float(each) for each in self.task.loss(self.task.student, self.teacher, batch).values())
            found = {HELD_OUT: loss * self._size(batch) / sizes}
            logits_NV = batch.logits(self.task.student)
            found[HELD_OUT_NLL] = float(mean_nll(logits_NV, batch.targets)) * batch.tokens / scored
            if self.task.comparable:
                found[HELD_OUT_KL] = float(mean_kl(predict(self.teacher, batch), logits_NV)) * batch.tokens / scored
            totals = {name: totals.get(name, 0.0) + value for name, value in found.items()}
        return totals

    def _has_stopped(self) -> bool:
        """Whether ``early_stop`` ends the training here."""
        evaluated = [point.step for point in self.curves if point.series == HELD_OUT]
        patience = self.settings.early_stop
        return patience is not None and sum(step > self.kept for step in evaluated) >= patience

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.task.name}: the training diverges, {what}; lower learning_rate (now "
            f"{self.settings.learning_rate:g}) or clip, lengthen warmup, or write early_stop: 3 to keep the best step"
        )

    def _measure(self, saved: int, chosen: Sequence[int]) -> None:
        states = [
            each for state in self.optimizer.state.values() for each in state.values() if isinstance(each, Tensor)
        ]
        documents, tokens = next(self._parts(self.examples, chosen)).ids.shape
        self.memory = list_memory(
            self.task.student,
            self.teacher,
            [each.parameter for each in self.task.trainable.values()],
            [each for each in states if isinstance(each, Tensor)],
            saved,
            documents,
            tokens,
            self.task.keeps,
            self.task.moment_bits,
        )

    def _seed(self, step: int) -> None:
        number = ((self.seed + 1) * 2**32 + step) % 2**63
        torch.default_generator.manual_seed(number)
        if self.task.student.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def _say(self, began: float, before: int) -> str:
        last = next((point.value for point in reversed(self.curves) if point.series == TRAIN), None)
        rate = (self.tokens - before) / max(1e-9, time.monotonic() - began)
        return "" if last is None else f"loss {last:.4g}, {rate:.0f} tokens/s"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def _prepared(task: Task, teacher: PreTrainedModel) -> Iterator[None]:
    """Gradients for the trainable parameters alone, deterministic kernels, and random numbers of its own."""
    task.student.eval()
    task.student.requires_grad_(False)
    for each in task.trainable.values():
        each.parameter.requires_grad_(True)
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    fills = filling.fill_uninitialized_memory
    device = task.student.device
    try:
        # Sums into places that several threads reach (experts, embeddings) are repeatable only so.
        torch.use_deterministic_algorithms(True, warn_only=True)
        filling.fill_uninitialized_memory = False
        with torch.enable_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        filling.fill_uninitialized_memory = fills
        for each in task.trainable.values():
            each.parameter.requires_grad_(False)
            each.parameter.grad = None

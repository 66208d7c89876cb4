"""Distillation: trains a student, smaller than its reference or not, towards it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.backends import Compressed
from harness.backends._common.training import TrainingBackend
from harness.errors import BackendError
from harness.records import Entry, Note
from harness.training.objectives import AnyObjective, Logit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.training.data import Training
    from harness.training.memory import Shapes
    from harness.training.objectives._given import Given


class Student(Entry):
    """What the student begins as: some decoder layers of the model that the step is given, or a model of a config."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] | Literal["halve"] | None = Field(
        default=None, examples=["halve", [0, 2]]
    )
    """Decoder layers that are kept, with their weights, in ascending order; halve: every other one, from the first on.
    Widths, embeddings and head stay."""
    config: str | None = Field(default=None, examples=["./student/config.json"])
    """A config.json of transformers, or a folder with one; the student begins at random."""

    @model_validator(mode="after")
    def _is_one(self) -> Student:
        if (self.layers is None) == (self.config is None):
            raise ValueError("layers or config, one of them; for a student of your own, variant: {model: ./folder}")
        return self


class Distill(TrainingBackend):
    """Trains a student towards the reference: its distributions, texts, inner states, preferences or accepted answers.

    The student is made of the model that the step is given (``student``), or is that model itself: the reference, or
    a checkpoint of your own (``model: ./folder`` of the variant). Objectives are added up by weight. Everything is
    trained in single precision and rounded to the model's dtype at the end.
    """

    paths: ClassVar[tuple[str, ...]] = ("student.config", "objectives.include")

    student: Student | None = Field(default=None, examples=[{"layers": "halve"}])
    """The student, unless it is the model that the step is given."""
    objectives: tuple[AnyObjective, ...] = Field(
        default=(Logit(),), examples=[[{"objective": "logit", "temperature": 2.0, "alpha": 0.1}]]
    )
    """Terms of the loss; the default is KL(teacher‖student) of the next token."""

    @model_validator(mode="after")
    def _has_objectives(self) -> Distill:
        if not self.objectives:
            raise ValueError("at least one objective, for example {objective: logit}")
        return self

    @property
    def reads_tokens(self) -> bool:
        """No: objectives that compare tokens are refused by name when the step begins, and the others do not care."""
        return False

    def shrink(self, parameters: int, shapes: Shapes | None) -> tuple[int, Shapes | None]:
        """Those of the layers that are kept; a model of a configuration is counted as large as the reference."""
        kept = self.student.layers if self.student else None
        if shapes is None or kept is None:
            return parameters, shapes
        layers = -(-shapes.layers // 2) if kept == "halve" else len(kept)
        removed = (parameters - shapes.vocabulary * shapes.hidden) * (shapes.layers - layers) // shapes.layers
        return parameters - removed, replace(shapes, layers=layers)

    def train(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training) -> Compressed:
        """Make the student and train it. Raises BackendError for a student or an objective that does not fit."""
        from harness.training.distilling import DistillationLoss, make_terms
        from harness.training.fitting import fit
        from harness.training.loop import Task, Trainable
        from harness.training.precision import float32_parameters, refuse_packed

        given, layers = self._prepare(model, tokenizer, training)
        student = given.student
        refuse_packed(self.kind, student)
        with float32_parameters(student):
            terms = make_terms(self.objectives, given)
            loss = DistillationLoss(terms, given)
            trainable = {name: Trainable(each) for name, each in student.named_parameters()}
            for place, term in enumerate(terms):
                parts = term.parts.to(student.device).named_parameters()
                trainable |= {f"objectives.{place}.{name}": Trainable(each, decays=False) for name, each in parts}
            task = Task(
                self.kind,
                student,
                trainable,
                loss,
                depends_on=self.settings() | {"learned": [term.source.sha256 for term in terms]},
                examples=given.texts.examples,
                held_out=given.texts.held_out,
                weigh_by="tokens" if loss.on_texts else "examples",
                comparable=given.same_tokens,
            )
            fit(task, self, training)
        notes = tuple(Note(topic="training", text=f"distill: {text}") for term in terms for text in term.source.notes)
        return Compressed(student, notes=notes, layers=layers, remade=self.student is not None)

    def _prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training
    ) -> tuple[Given, tuple[int, ...] | None]:
        """What objectives are given, and the layers of which the student is made."""
        from harness.models.identity import tokenizer_sha256
        from harness.training.objectives._given import Given

        same = tokenizer_sha256(tokenizer) == tokenizer_sha256(training.tokenizer or tokenizer)
        if not same:
            self._check_tokens()
        student, layers = self._make_student(model, training.seed)
        return Given(self.kind, student, tokenizer, training, same), layers

    def _check_tokens(self) -> None:
        """Raise BackendError for objectives that compare tokens, naming those that do not."""
        if unfit := [each.name for each in self.objectives if each.same_tokens]:
            raise BackendError(
                f"{self.kind}: the objectives {', '.join(dict.fromkeys(unfit))} compare student and teacher token by "
                "token, and their tokenizers differ; objectives that work: sequence, traces, and logit with alpha: 1"
            )

    def _make_student(self, model: PreTrainedModel, seed: int) -> tuple[PreTrainedModel, tuple[int, ...] | None]:
        from harness.training.students import choose_half, count_blocks, cut_blocks, make_from_config

        if self.student is None:
            return model, None
        if self.student.config is not None:
            return make_from_config(self.student.config, model, seed), None
        kept = choose_half(count_blocks(model)) if self.student.layers == "halve" else self.student.layers
        layers: tuple[int, ...] = tuple(kept or ())
        return cut_blocks(model, layers), layers

"""The loss of a distillation: objectives on the texts of each, every model run once for all that share texts.

batch of the main texts ─▶ texts of every source ─▶ student, teacher ─▶ terms of every objective ─▶ · weight
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.training.examples import Batch
from harness.training.objectives import Objective
from harness.training.objectives._given import Given, Source
from harness.training.objectives._outputs import Seen
from harness.training.objectives._reading import Reader


@dataclass(frozen=True)
class Term:
    """An objective with the texts on which it is computed, and what is learned for it beside the student."""

    objective: Objective
    source: Source
    parts: nn.Module


class DistillationLoss:
    """Called with student, teacher and a batch of the training texts; gives the weighted terms of every objective.

    Sources of other texts are gone through in an order of their own, one text (or pair) for each of the batch. Where
    memory runs out, the mean over a part of a batch counts by the tokens of its training texts, in other sources too.
    """

    def __init__(self, terms: Sequence[Term], given: Given) -> None:
        self._texts, self._seed = given.texts, given.seed
        sources = list({id(term.source): term.source for term in terms}.values())
        self._groups = [(source, [term for term in terms if term.source is source]) for source in sources]
        self._readers = [
            (
                Reader("student", given.student, {part for term in group for part in term.objective.reads}),
                Reader(
                    "teacher",
                    given.training.teacher,
                    {part for term in group if term.objective.uses_teacher for part in term.objective.reads},
                ),
            )
            for _, group in self._groups
        ]

    def __call__(self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Mapping[str, Tensor]:
        """Terms of the loss by name, which add up to it."""
        found: dict[str, Tensor] = {}
        for (source, group), (own, other) in zip(self._groups, self._readers, strict=True):
            drawn = batch if source is self._texts else source.draw(batch, self._seed)
            if source.write:
                drawn = source.write(student, drawn)
            read = own.read(drawn)
            taught = None
            if any(term.objective.uses_teacher for term in group):
                with torch.no_grad():
                    taught = other.read(drawn)
            for term in group:
                for name, value in term.objective.terms(
                    Seen(drawn, read, taught, term.parts, source.find_before(drawn))
                ).items():
                    weighted = term.objective.weight * value
                    found[name] = found[name] + weighted if name in found else weighted
        return found

    @property
    def on_texts(self) -> bool:
        """Whether an objective is computed on the training texts themselves."""
        return any(source is self._texts for source, _ in self._groups)


def make_terms(objectives: Sequence[Objective], given: Given) -> list[Term]:
    """Every objective with its texts and parts. Raises BackendError and DataError as ``Objective.gather`` does."""
    return [
        Term(each, each.gather(given), each.make_parts(given.student, given.training.teacher, given.seed + place))
        for place, each in enumerate(objectives)
    ]

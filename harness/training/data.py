"""What a training is given beside a model: texts, the reference, the number of steps, and where its files are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.records import TrainingSpec
from harness.records.training import Fitted
from harness.training.examples import Example
from harness.training.questions import Questions

Ask = Callable[[str, Sequence[str], int], Questions]
"""``(task, places of task files, most questions)`` ─▶ training questions of the task."""
SAVE_SECONDS = 60.0
"""Between two states on disk: what a killed process loses at most."""


@dataclass
class Training:
    """Materials of the training steps of one variant.

    texts, held_out: token ids, one 1-D int64 tensor for each document. prompts: how many ids at the beginning of each
    text, then of each held-out one, are a prompt and not learned; empty for none. teacher: the reference, which stays
    as it is; teacher_sha256: of its weights. environment: versions and threads, on which the last bits depend. cache: a
    folder, None to keep nothing. used: keys of the trainings of this variant so far, and fits: what they left.
    tokenizer: the teacher's, if it may be another than the student's. ask: gives the questions of tasks.
    """

    spec: TrainingSpec
    texts: Sequence[Tensor]
    held_out: Sequence[Tensor]
    teacher: PreTrainedModel
    teacher_sha256: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    prompts: Sequence[int] = ()
    save_seconds: float = SAVE_SECONDS
    used: list[str] = field(default_factory=list)
    fits: list[Fitted] = field(default_factory=list)
    tokenizer: PreTrainedTokenizerBase | None = None
    ask: Ask | None = None

    def examples(self) -> tuple[list[Example], list[Example]]:
        """The texts and the held-out ones, of which what follows the prompt is scored."""
        ids = (*self.texts, *self.held_out)
        starts = self.prompts or [0] * len(ids)
        every = [Example(each, max(1, start)) for each, start in zip(ids, starts, strict=True)]
        return every[: len(self.texts)], every[len(self.texts) :]

    @property
    def seed(self) -> int:
        """Fixes the order of the texts, and random numbers of losses."""
        return self.spec.seed

    def steps(self, units: int, batch: int) -> int:
        """Optimizer steps over ``units`` documents: as many as asked, or enough for the epochs."""
        if self.spec.steps is not None:
            return self.spec.steps
        return -(-units * (self.spec.epochs or 0) // batch)
